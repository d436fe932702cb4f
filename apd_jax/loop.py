"""The loop around a step: chunks of scanned steps, checked, reported and saved between chunks.

The same loop trains target networks and their decompositions. Letters: S seeds side by side.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
StepFn = Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, dict[str, jax.Array]]]


class Diverged(RuntimeError):
    """A loss, gradient or parameter stopped being finite."""


class Stopped(Exception):
    """The observer asked to stop; everything up to `step` is saved."""

    def __init__(self, step: int):
        super().__init__(f"stopped at step {step}")
        self.step = step


class Observer:
    """What happens between chunks. This one does nothing; override what is wanted."""

    def on_metrics(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """Metrics [S] of step `step - 1`, when `step` steps are done."""

    def save(self, step: int, state: PyTree) -> None:
        """Keep the state after `step` steps. Its buffers are reused as soon as this returns."""

    def should_stop(self) -> bool:
        """Whether to save and raise `Stopped` after this chunk."""
        return False


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3,))
def _chunk(step_fn: StepFn, length: int, context: PyTree, state: PyTree, seeds: jax.Array):
    """`length` steps of every seed. Metrics come back as [S, length]."""

    def one_seed(seed_context, seed_state, seed):
        key = jax.random.key(seed)

        def body(carry, _):
            return step_fn(seed_context, carry, jax.random.fold_in(key, carry.step))

        return jax.lax.scan(body, seed_state, length=length)

    return jax.vmap(one_seed)(context, state, seeds)


def run_steps(
    step_fn: StepFn,
    context: PyTree,
    state: PyTree,
    seeds: jax.Array,
    *,
    steps: int,
    chunk_steps: int,
    save_every: int | None = None,
    observer: Observer | None = None,
) -> PyTree:
    """Run a step function until `steps` steps are done, for S seeds at once.

    The key of step t of a seed is `fold_in(key(seed), t)`, so that neither chunks, nor resuming,
    nor the other seeds change what a seed sees.

    Args:
      step_fn: `(context, state, key) -> (state, metrics)` for a single seed; `state.step` counts.
      context: what the steps read (a target), every leaf [S, ...].
      state: the state to go on from, every leaf [S, ...]. Its buffers are given up.
      seeds: uint32 [S].
      steps: total number of steps, those that `state.step` counts already included.
      chunk_steps: steps between two looks of the host.
      save_every: steps between two saves (rounded up to whole chunks); only the end if None.
      observer: told of metrics and saves.

    Returns:
      The state after `steps` steps.

    Raises:
      Diverged: a metric or the state is not finite. What was saved before stays.
      Stopped: the observer asked for it.
    """
    observer = observer or Observer()
    done = saved = int(state.step[0])
    waiting = None
    while done < steps:
        length = min(chunk_steps, steps - done)
        state, metrics = _chunk(step_fn, length, context, state, seeds)
        if waiting is not None:
            _report(observer, *waiting)  # while the device works on the chunk after it
        done += length
        waiting = done, metrics
        stop = observer.should_stop()
        if stop or done == steps or (save_every and done - saved >= save_every):
            _report(observer, *waiting)
            waiting = None
            _check_state(done, state)
            observer.save(done, state)
            saved = done
        if stop and done < steps:
            raise Stopped(done)
    return state


def _report(observer: Observer, done: int, metrics: dict[str, jax.Array]) -> None:
    """Fetch a chunk's metrics, refuse what is not finite, and hand on those of its last step."""
    values = {name: np.asarray(value) for name, value in metrics.items()}
    length = next(iter(values.values())).shape[1]
    broken = {name: ~np.isfinite(value) for name, value in values.items()}
    steps = {name: np.argmax(bad.any(axis=0)) for name, bad in broken.items() if bad.any()}
    if steps:
        # Sums of terms break with their terms: name the term.
        name = min(steps, key=lambda n: (steps[n], n in ("loss/total", "gradient_norm"), n))
        bad_seeds = np.flatnonzero(broken[name][:, steps[name]]).tolist()
        raise Diverged(
            f"{name} is not finite at step {done - length + int(steps[name])} in seed(s) "
            f"{bad_seeds} of the batch; try a lower learning rate or more warmup"
        )
    observer.on_metrics(done, {name: value[:, -1] for name, value in values.items()})


@jax.jit
def _all_finite(state: PyTree) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.array([jnp.all(jnp.isfinite(x)) for x in leaves]).all()


def _check_state(done: int, state: PyTree) -> None:
    if not _all_finite(state):
        raise Diverged(f"parameters or optimiser state are not finite after step {done}")


def stack(items: list[PyTree]) -> PyTree:
    """Put pytrees side by side: every leaf gets a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *items)


def pick(tree: PyTree, index: int) -> PyTree:
    """The `index`-th of the pytrees that stand side by side."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
