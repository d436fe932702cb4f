"""The loop around a step: chunks of scanned steps; checks, reports and saves between chunks.

The same loop trains target networks and their decompositions. Letters: S seeds side by side.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from apd_jax.errors import UserError
from apd_jax.runtime import memory, metric_names, step_programs
from apd_jax.runtime.mesh import SEEDS, seeds_mesh
from apd_jax.runtime.outcome import DataFailed, Diverged, Stopped, of_callback
from apd_jax.sites import leaf_name

PyTree = Any
Metrics = dict[str, jax.Array]
StepFn = Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, Metrics]]
Feed = Callable[[int, int], Iterable[tuple[int, PyTree]]]

_SUMS = ("loss/total", "gradient_norm")
_HINT = "try a lower learning rate or more warmup"


class Between(NamedTuple):
    """Work that a training does between steps, at regular intervals.

    Attributes:
      every: number of steps between two calls.
      until: last step after which there may be a call.
      function: `(context, state, key) -> state` for a single seed.
      feed: `step -> fed`, what a call after this step reads besides, the same for all seeds; the
        function then gets `(context, fed)` as its context.
    """

    every: int
    until: int
    function: Callable[[PyTree, PyTree, jax.Array], PyTree]
    feed: Callable[[int], PyTree] | None = None

    def due(self, done: int) -> bool:
        """Whether there is a call between step `done` and the next."""
        return 0 < done <= self.until and done % self.every == 0

    def next_after(self, done: int) -> int:
        """The first step after `done` that a call may follow."""
        return (done // self.every + 1) * self.every


class Training(Protocol):
    """A training of S seeds side by side, as `session.fit` runs it.

    Attributes:
      steps: total number of steps.
      seeds: uint32 [S].
      context: what the steps read, every leaf [S, ...].
      step: the step function, see `run_steps`.
      between: work between steps, if any.
      feed: what the next steps read in addition, if anything.
    """

    steps: int
    seeds: jax.Array
    context: PyTree
    step: StepFn
    between: Between | None
    feed: Feed | None

    def init_state(self) -> PyTree:
        """Make the state before the first step, every leaf [S, ...]."""


class Observer:
    """Callbacks between chunks. These do nothing; override what is wanted."""

    def on_metrics(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """Receive the metrics [S] at a chunk's last step; of the group `count/` sums over it."""

    def save(self, step: int, state: PyTree) -> None:
        """Keep the state after `step` steps. Its buffers are reused as soon as this returns."""

    def should_stop(self) -> bool:
        """Whether to save and raise `Stopped` after this chunk."""
        return False


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
      state: the state to start from, every leaf [S, ...]. Its buffers are donated.
      seeds: uint32 [S].
      steps: total number of steps, including those that `state.step` counts already.
      chunk_steps: number of steps that run on the device between two callbacks.
      save_every: saves happen at its multiples, each rounded up to a whole chunk, at the end, and
        where the training stops early; None for the latter two only.
      observer: receives metrics and states.
      feed: `(step, length) -> pairs (count, fed)`: `fed` is what the next `count` steps read
        besides, the same for all seeds, and the counts add up to `length`; step functions then get
        `(context, fed)` as their context.
      between: work between steps. A state is saved before it, so that resuming repeats it.

    Returns:
      The state after `steps` steps.

    Raises:
      Diverged: a metric or the state is not finite. What was saved before stays.
      Stopped: the observer asked for it.
      DataFailed: a `feed` raised an error after the first steps; the state was saved before. Or a
        callback of the steps raised one; what was saved before stays.
      UserError: chunk_steps below 1.
    """
    if chunk_steps < 1:
        raise UserError(f"chunk_steps must be at least 1, got {chunk_steps}")
    training = _Loop(step_fn, context, state, seeds, steps, observer or Observer(), feed, between)
    try:
        while training.done < steps:
            training.run_chunk(chunk_steps, save_every)
        return training.gathered()
    except Exception as error:
        text = of_callback(error)
        if text is None:
            raise
        raise DataFailed(f"Python code that the steps call raised an error: {text}") from error


class _Loop:
    """A training under way: its state on the device, and the metrics that wait to be reported."""

    def __init__(
        self,
        step_fn: StepFn,
        context: PyTree,
        state: PyTree,
        seeds: jax.Array,
        steps: int,
        observer: Observer,
        feed: Feed | None,
        between: Between | None,
    ):
        self._steps, self._observer, self._feed, self._between = steps, observer, feed, between
        self._start = self.done = int(state.step[0])
        self._mesh = seeds_mesh(len(seeds))
        if self._mesh is not None:
            sharding = NamedSharding(self._mesh, PartitionSpec(SEEDS))
            context, state, seeds = jax.device_put((context, state, seeds), sharding)
        memory.give_back()  # what making the state took
        self._state, self._seeds = state, seeds
        self._leaves, self._tree = jax.tree.flatten(context)
        self._chunk = step_programs.chunk(step_fn, self._tree)
        self._waiting: tuple[int, list[Metrics]] | None = None

    def run_chunk(self, chunk_steps: int, save_every: int | None) -> None:
        """Run a chunk, report the one before it, and save where a save is due."""
        begun, length = self.done, min(chunk_steps, self._steps - self.done)
        if self._between is not None:
            length = min(length, self._between.next_after(begun) - begun)
        parts: list[Metrics] = []
        pieces = _pieces(self._feed, begun, length)
        between = self._between if self._between and self._between.due(begun) else None
        while self.done < begun + length:
            try:
                read = between.feed(begun) if between and between.feed else None
                count, fed = next(pieces)
            except Exception as error:
                if self.done == self._start:
                    raise
                raise self._data_failed(error, parts) from error
            if between:
                self._run_between(between, read)
                between = None
            self._run_piece(count, fed, parts)
        if self._waiting is None:
            memory.give_back()  # what compiling took; the device is at work already
        self._report()  # while the device works on the chunk after it
        self._waiting = self.done, parts
        stop = self._observer.should_stop()
        due = save_every and self.done // save_every > begun // save_every
        if due or stop or self.done == self._steps:
            self._report()
            _save(self._observer, self.done, self._state)
        if stop and self.done < self._steps:
            raise Stopped(self.done, state=self.gathered())

    def _run_between(self, between: Between, fed: PyTree) -> None:
        """Do the work that is due before the next step."""
        call = step_programs.between(between.function, self._tree)
        self._state = call(self._mesh, self._leaves, self._state, self._seeds, fed)

    def _run_piece(self, count: int, fed: PyTree, parts: list[Metrics]) -> None:
        """Run the next steps; `parts`, the metrics of the chunk so far, gets theirs."""
        jax.block_until_ready(parts)  # else what was fed would pile up on the device
        arguments = self._mesh, self._leaves, self._state, self._seeds
        self._state, metrics = self._chunk(count, *arguments, fed)
        self.done += count
        parts.append(metrics)

    def _report(self) -> None:
        """Report the chunk that waits, if there is one."""
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            _report(self._observer, *waiting)

    def _data_failed(self, error: Exception, parts: list[Metrics]) -> DataFailed:
        """Report and save what was done before the data failed."""
        unsaved = self._waiting or parts
        self._report()
        if parts:
            _report(self._observer, self.done, parts)
        if unsaved:
            _save(self._observer, self.done, self._state)
        return DataFailed(
            f"the data failed after step {self.done} of {self._steps}: {error}",
            step=self.done,
            state=self.gathered(),
        )

    def gathered(self) -> PyTree:
        """The state on one device, where everything else of a decomposition is."""
        if self._mesh is None:
            return self._state
        return jax.device_put(self._state, jax.devices()[0])


def _pieces(feed: Feed | None, done: int, length: int) -> Iterator[tuple[int, PyTree]]:
    """What the next steps are fed; a generator, so that errors of `feed` come from `next` alone."""
    yield from [(length, None)] if feed is None else feed(done, length)


def _report(observer: Observer, done: int, parts: list[Metrics]) -> None:
    """Fetch a chunk's metrics, check that they are finite, and pass on those of its last step.

    Of events that are counted the sum over the chunk is passed on.
    """
    values = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
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
            f"in place(s) {bad_seeds} of the seeds; {_HINT}",
            places=bad_seeds,
        )
    last = {n: v.sum(axis=1) if metric_names.counts(n) else v[:, -1] for n, v in values.items()}
    observer.on_metrics(done, last)


@jax.jit
def _finite(state: PyTree) -> jax.Array:
    """Whether all of each leaf is finite in each place; bool [number of leaves, S]."""
    leaves = [jnp.isfinite(leaf) for leaf in jax.tree.leaves(state)]
    return jnp.stack([jnp.all(leaf, axis=tuple(range(1, leaf.ndim))) for leaf in leaves])


def _save(observer: Observer, done: int, state: PyTree) -> None:
    """Let the observer save a state, if all of it is finite."""
    finite = np.asarray(_finite(state))
    if not finite.all():
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
        broken = [paths[i] for i in np.flatnonzero(~finite.all(axis=1))]
        raise Diverged(
            f"{' and '.join(map(leaf_name, broken))} of the state stopped being finite by step "
            f"{done}; {_HINT}",
            places=np.flatnonzero(~finite.all(axis=0)).tolist(),
        )
    observer.save(done, state)


def stack(items: list[PyTree]) -> PyTree:
    """Put pytrees side by side: every leaf gets a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *items)


def pick(tree: PyTree, index: int) -> PyTree:
    """The `index`-th of several pytrees that are side by side."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
