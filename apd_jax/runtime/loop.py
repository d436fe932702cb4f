"""The loop around a step: chunks of scanned steps; checks, reports and saves between chunks.

The same loop trains target networks and their decompositions. Letters: S seeds side by side.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.errors import UserError
from apd_jax.runtime import divergence, memory, mesh, processes, step_programs
from apd_jax.runtime.divergence import Metrics
from apd_jax.runtime.outcome import DataFailed, Stopped, of_callback

PyTree = Any
StepFn = Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, Metrics]]
Feed = Callable[[int, int], Iterable[tuple[int, PyTree]]]


class Observer:
    """Callbacks between chunks. These do nothing; override what is wanted."""

    def on_metrics(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """Receive the metrics [S] of a chunk's last step; for the group `count/`, sums over it."""

    def save(self, step: int, state: PyTree) -> None:
        """Keep the state after `step` steps. Its buffers are reused as soon as this returns."""

    def should_stop(self) -> bool:
        """Whether to save and raise `Stopped` after this chunk."""
        return False


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
      step: `(context, state, key) -> (state, metrics)` for a single seed; `state.step` counts.
      between: work between steps, if any. A state is saved before it, so that resuming repeats it.
      feed: `(step, length) -> pairs (count, fed)`, if the steps are fed: `fed` is what the next
        `count` steps read besides, the same for all seeds, and the counts add up to `length`; the
        step then gets `(context, fed)` as its context.
      layout: how the arrays are divided over devices; None for a single device.
    """

    steps: int
    seeds: jax.Array
    context: PyTree
    step: StepFn
    between: Between | None
    feed: Feed | None
    layout: mesh.Layout | None

    def init_state(self) -> PyTree:
        """Make the state before the first step, every leaf [S, ...]."""


def run_steps(
    training: Training,
    state: PyTree,
    *,
    chunk_steps: int,
    steps: int | None = None,
    save_every: int | None = None,
    observer: Observer | None = None,
) -> PyTree:
    """Run a training until `steps` steps are done, for S seeds at once.

    The key of step t of a seed is `randomness.step_key(root(seed), t)`, so that neither chunks, nor
    resuming, nor the other seeds change what a seed sees.

    Args:
      training: the steps, what they read, and the work between them.
      state: the state to start from, every leaf [S, ...]. Its buffers are donated.
      chunk_steps: number of steps that run on the device between two callbacks.
      steps: total number of steps, including those that `state.step` counts already; by default
        that of the training.
      save_every: saves happen at its multiples, each rounded up to a whole chunk, at the end, and
        where the training stops early; None for the latter two only.
      observer: receives metrics and states.

    Returns:
      The state after `steps` steps, on one device.

    Raises:
      Diverged: a metric or the state is not finite. What was saved before stays.
      Stopped: the observer asked for it.
      DataFailed: the feed raised an error after the first steps; the state was saved before. Or a
        callback of the steps raised one; what was saved before stays.
      UserError: chunk_steps below 1.
    """
    if chunk_steps < 1:
        raise UserError(f"chunk_steps must be at least 1, got {chunk_steps}")
    steps = training.steps if steps is None else steps
    run = _Loop(training, state, steps, observer or Observer())
    try:
        while run.done < steps:
            run.run_chunk(chunk_steps, save_every)
        return run.gathered()
    except Exception as error:
        processes.raise_if_lost(error)
        text = of_callback(error)
        if text is None:
            raise
        raise DataFailed(f"Python code that the steps call raised an error: {text}") from error


class _Loop:
    """A training under way: its state on the device, and the metrics that wait to be reported."""

    def __init__(self, training: Training, state: PyTree, steps: int, observer: Observer):
        self._training, self._steps, self._observer = training, steps, observer
        step = np.asarray(state.step.addressable_data(0))  # the same for all seeds
        self._start = self.done = int(step[0])
        context, seeds, layout = training.context, training.seeds, training.layout
        self._layout = layout
        if layout is not None:
            state = mesh.put(state, layout.state(state))
            context = mesh.put(context, layout.context(context))
            seeds = mesh.put(seeds, layout.state(seeds))
        memory.give_back()  # what making the state took
        self._state, self._seeds = state, seeds
        self._leaves, self._tree = jax.tree.flatten(context)
        self._chunk = step_programs.chunk(training.step, self._tree)
        self._waiting: tuple[int, list[Metrics]] | None = None

    def run_chunk(self, chunk_steps: int, save_every: int | None) -> None:
        """Run a chunk, report the one before it, and save where a save is due."""
        begun, length = self.done, min(chunk_steps, self._steps - self.done)
        between = self._training.between
        if between is not None:
            length = min(length, between.next_after(begun) - begun)
        parts: list[Metrics] = []
        pieces = _pieces(self._training.feed, begun, length)
        between = between if between and between.due(begun) else None
        while self.done < begun + length:
            try:
                read = between.feed(begun) if between and between.feed else None
                count, fed = next(pieces)
            except Exception as error:
                if self.done == self._start:
                    raise
                raise self._data_failed(error, parts) from error
            if between:
                call = step_programs.between(between.function, self._tree, self._leaves)
                arguments = self._leaves, self._state, self._seeds, self._shared(read)
                self._state, between = call(self._layout, *arguments), None
            self._run_piece(count, fed, parts)
        if self._waiting is None:
            memory.give_back()  # what compiling took; the device is at work already
        self._report()  # while the device works on the chunk after it
        self._waiting = self.done, parts
        stop = self._observer.should_stop()
        due = save_every and self.done // save_every > begun // save_every
        if due or stop or self.done == self._steps:
            self._report()
            self._save()
        if stop and self.done < self._steps:
            raise Stopped(self.done, state=self.gathered())

    def _run_piece(self, count: int, fed: PyTree, parts: list[Metrics]) -> None:
        """Run the next steps; `parts`, the metrics of the chunk so far, gets theirs."""
        jax.block_until_ready(parts)  # else what was fed would pile up on the device
        arguments = self._leaves, self._state, self._seeds, self._shared(fed)
        self._state, metrics = self._chunk(count, self._layout, *arguments)
        self.done += count
        parts.append(metrics)

    def _shared(self, fed: PyTree) -> PyTree:
        """What all seeds are fed, on all devices."""
        return fed if self._layout is None else mesh.put(fed, self._layout.everywhere)

    def _report(self) -> None:
        """Report the chunk that waits, if there is one."""
        if self._waiting is not None:
            (done, parts), self._waiting = self._waiting, None
            self._observer.on_metrics(done, divergence.last_metrics(done, parts))

    def _save(self) -> None:
        """Let the observer save the state, if all of it is finite."""
        divergence.check_state(self.done, self._state)
        self._observer.save(self.done, self._state)

    def _data_failed(self, error: Exception, parts: list[Metrics]) -> DataFailed:
        """Report and save what was done before the data failed."""
        unsaved = self._waiting or parts
        self._report()
        if parts:
            self._waiting = self.done, parts
            self._report()
        if unsaved:
            self._save()
        return DataFailed(
            f"the data failed after step {self.done} of {self._steps}: {error}",
            step=self.done,
            state=self.gathered(),
        )

    def gathered(self) -> PyTree:
        """The state on one device, where everything else of a decomposition is."""
        return mesh.gathered(self._layout, self._state)


def _pieces(feed: Feed | None, done: int, length: int) -> Iterator[tuple[int, PyTree]]:
    """What the next steps are fed; a generator, so that errors of `feed` come from `next` alone."""
    yield from [(length, None)] if feed is None else feed(done, length)


def abstract_state(training: Training) -> PyTree:
    """Shapes and types of a training's state, and where its arrays are to lie (`sharding`)."""
    shapes = jax.eval_shape(training.init_state)
    return mesh.placed(shapes, training.layout and training.layout.state(shapes))


def stack(items: list[PyTree]) -> PyTree:
    """Put pytrees side by side: every leaf gets a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *items)


def pick(tree: PyTree, index: int) -> PyTree:
    """The `index`-th of several pytrees that are side by side."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
