"""The loop around a step: chunks of scanned steps, checked, reported and saved between chunks.

The same loop trains target networks and their decompositions. Letters: S seeds side by side.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from apd_jax import randomness
from apd_jax.errors import UserError
from apd_jax.runtime import memory
from apd_jax.runtime.mesh import SEEDS, seeds_mesh
from apd_jax.sites import leaf_name

PyTree = Any
StepFn = Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, dict[str, jax.Array]]]
Feed = Callable[[int, int], PyTree]

_SUMS = ("loss/total", "gradient_norm")
_HINT = "try a lower learning rate or more warmup"


class Between(NamedTuple):
    """What a training does between steps, now and then.

    Attributes:
      every: it comes after every so many steps.
      until: and not after this step.
      function: `(context, state, key) -> state` for a single seed.
    """

    every: int
    until: int
    function: Callable[[PyTree, PyTree, jax.Array], PyTree]

    def due(self, done: int) -> bool:
        """Whether it comes between step `done` and the next."""
        return 0 < done <= self.until and done % self.every == 0

    def next_after(self, done: int) -> int:
        """The first step after `done` that it may come after."""
        return (done // self.every + 1) * self.every


class Diverged(UserError):
    """A loss, gradient or parameter stopped being finite."""


class Stopped(Exception):
    """Somebody asked to stop; everything up to `step` is saved, and here as `state`."""

    def __init__(self, step: int, what: str = "training", *, state: PyTree = None):
        super().__init__(f"{what} stopped at step {step}")
        self.step, self.state = step, state


class Observer:
    """What happens between chunks. This one does nothing; override what is wanted."""

    def on_metrics(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """Metrics [S] of the last of the first `step` steps."""

    def save(self, step: int, state: PyTree) -> None:
        """Keep the state after `step` steps. Its buffers are reused as soon as this returns."""

    def should_stop(self) -> bool:
        """Whether to save and raise `Stopped` after this chunk."""
        return False


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(4,))
def _chunk(
    step_fn: StepFn,
    length: int,
    mesh: Mesh | None,
    context: PyTree,
    state: PyTree,
    seeds: jax.Array,
    fed: PyTree,
):
    """`length` steps of every seed. Metrics come back as [S, length]."""

    def one_seed(seed_context, seed_state, seed, fed):
        key = randomness.root(seed)
        reads = seed_context if fed is None else (seed_context, fed)

        def body(carry, _):
            return step_fn(reads, carry, randomness.step_key(key, carry.step))

        return jax.lax.scan(body, seed_state, length=length)

    all_seeds = jax.vmap(one_seed, in_axes=(0, 0, 0, None))
    if mesh is not None:
        axis = PartitionSpec(SEEDS)
        all_seeds = jax.shard_map(
            all_seeds,
            mesh=mesh,
            in_specs=(axis, axis, axis, PartitionSpec()),
            out_specs=axis,
            check_vma=False,
        )
    return all_seeds(context, state, seeds, fed)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3,))
def _between(function, mesh, context, state, seeds):
    """One call for every seed, one after another: what a seed does not need, it does not pay."""

    def one_seed(arguments):
        seed_context, seed_state, seed = arguments
        key = randomness.step_key(randomness.root(seed), seed_state.step)
        return function(seed_context, seed_state, key)

    def all_seeds(*arguments):
        return jax.lax.map(one_seed, arguments)

    if mesh is not None:
        axis = PartitionSpec(SEEDS)
        all_seeds = jax.shard_map(
            all_seeds, mesh=mesh, in_specs=axis, out_specs=axis, check_vma=False
        )
    return all_seeds(context, state, seeds)


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
    feed: Feed | None = None,
    between: Between | None = None,
) -> PyTree:
    """Run a step function until `steps` steps are done, for S seeds at once.

    The key of step t of a seed is `randomness.step_key(root(seed), t)`, so that neither chunks, nor
    resuming, nor the other seeds change what a seed sees.

    Args:
      step_fn: `(context, state, key) -> (state, metrics)` for a single seed; `state.step` counts.
      context: what the steps read (a target), every leaf [S, ...].
      state: the state to go on from, every leaf [S, ...]. Its buffers are given up.
      seeds: uint32 [S].
      steps: total number of steps, those that `state.step` counts already included.
      chunk_steps: steps between two looks of the host.
      save_every: saves are at its multiples, each rounded up to a whole chunk, at the end and
        where the observer asks to stop; None for the latter two only.
      observer: told of metrics and saves.
      feed: `(step, length) -> fed`, what the next steps read besides, the same for all seeds; step
        functions then get `(context, fed)` as their context.
      between: what is done between steps. A state is saved before, so that going on from it does
        the same again.

    Returns:
      The state after `steps` steps.

    Raises:
      Diverged: a metric or the state is not finite. What was saved before stays.
      Stopped: the observer asked for it.
      UserError: chunk_steps below 1.
    """
    if chunk_steps < 1:
        raise UserError(f"chunk_steps must be at least 1, got {chunk_steps}")
    observer = observer or Observer()
    done = int(state.step[0])
    mesh = seeds_mesh(len(seeds))
    if mesh is not None:
        sharding = NamedSharding(mesh, PartitionSpec(SEEDS))
        context, state, seeds = jax.device_put((context, state, seeds), sharding)
    memory.give_back()  # what making the state took
    waiting = None
    while done < steps:
        length = min(chunk_steps, steps - done)
        if between is not None:
            if between.due(done):
                state = _between(between.function, mesh, context, state, seeds)
            length = min(length, between.next_after(done) - done)
        fed = None if feed is None else feed(done, length)
        state, metrics = _chunk(step_fn, length, mesh, context, state, seeds, fed)
        if waiting is None:
            memory.give_back()  # what compiling took; the device is at work already
        if waiting is not None:
            _report(observer, *waiting)  # while the device works on the chunk after it
        done += length
        waiting = done, metrics
        stop = observer.should_stop()
        due = save_every and done // save_every > (done - length) // save_every
        if due or stop or done == steps:
            _report(observer, *waiting)
            waiting = None
            _check_state(done, state)
            observer.save(done, state)
        if stop and done < steps:
            raise Stopped(done, state=state)
    return state if mesh is None else jax.device_put(state, jax.devices()[0])


def _report(observer: Observer, done: int, metrics: dict[str, jax.Array]) -> None:
    """Fetch a chunk's metrics, refuse what is not finite, and hand on those of its last step."""
    values = {name: np.asarray(value) for name, value in metrics.items()}
    length = next(iter(values.values())).shape[1]
    broken = {name: ~np.isfinite(value) for name, value in values.items()}
    steps = {name: np.argmax(bad.any(axis=0)) for name, bad in broken.items() if bad.any()}
    if steps:
        first = min(steps.values())
        names = sorted(name for name in steps if steps[name] == first)
        # Sums of terms break with their terms: name the terms.
        names = [name for name in names if name not in _SUMS] or names
        bad_seeds = np.flatnonzero(broken[names[0]][:, first]).tolist()
        raise Diverged(
            f"{' and '.join(names)} stopped being finite at step {done - length + 1 + int(first)}, "
            f"in place(s) {bad_seeds} of the seeds; {_HINT}"
        )
    observer.on_metrics(done, {name: value[:, -1] for name, value in values.items()})


@jax.jit
def _finite(state: PyTree) -> jax.Array:
    """For every leaf, whether all of it is finite; bool [number of leaves]."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)])


def _check_state(done: int, state: PyTree) -> None:
    finite = np.asarray(_finite(state))
    if not finite.all():
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
        broken = [paths[i] for i in np.flatnonzero(~finite)]
        raise Diverged(
            f"{' and '.join(map(leaf_name, broken))} of the state stopped being finite by step "
            f"{done}; {_HINT}"
        )


def stack(items: list[PyTree]) -> PyTree:
    """Put pytrees side by side: every leaf gets a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *items)


def pick(tree: PyTree, index: int) -> PyTree:
    """The `index`-th of the pytrees that stand side by side."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
