"""Batches that come ready-made."""

import collections
import concurrent.futures
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.data.source import Source, as_array, take
from apd_jax.errors import UserError
from apd_jax.sites import PyTree


class Batches(Source):
    """Ready-made batches, one a step, fetched in a thread while the device works.

    What can be iterated again starts over at its end. Going on at step t passes over t batches.
    """

    feeds = True

    def __init__(self, batches: Iterable[PyTree]):
        self._batches, self._iterator = batches, iter(batches)
        self.repeats = isinstance(batches, list)  # a loader may shuffle anew
        self._waiting: collections.deque[PyTree] = collections.deque()
        self._position = 0  # of the first batch that waits
        self._ended = self._fresh = False
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._pending: concurrent.futures.Future[None] | None = None
        self._layout: Any = None
        self._taken: list[PyTree] | None = None  # by the last steps

    def sizes(self):
        self._fill(1)
        return {"batch_size": jax.tree.leaves(self._waiting[0])[0].shape[0]}

    def check(self, batch_size):
        found = self.sizes()["batch_size"]
        if found != batch_size:
            raise UserError(
                f"batches have {found} examples, batch_size is {batch_size}: leave it out"
            )

    def feed(self, step, length):
        if step < self._position:
            raise UserError(
                f"batches from step {step} on are needed, and those before {self._position} were "
                "read already: call decompose with a fresh iterator"
            )
        while self._position < step:
            self._fill(1)
            self._waiting.popleft()
            self._position += 1
        self._fill(length)
        taken = self._taken = [self._waiting.popleft() for _ in range(length)]
        self._position += length
        self._pending = self._thread.submit(self._pull, length)
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *taken)
        return {"batches": stacked, "start": np.int32(step)}

    def batch(self, fed, step, key, batch_size):
        return take(fed["batches"], step - fed["start"])

    def again(self):
        if iter(self._batches) is self._iterator:
            raise UserError(
                "the data are an iterator, which gives its batches once, and several trainings "
                "need them: give what can be iterated again, such as a list or a data loader"
            )
        return Batches(self._batches)

    def examples(self, seed, count):
        if self._taken is None:
            self._fill(1)
        size = self._layout[0][0][0]
        self._wait()
        self._pull(-(-count // size) - len(self._waiting))
        batches = list(self._waiting) or self._taken  # a generator may be used up
        together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[:count]), together)

    def describe(self):
        return "iterable of batches"

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _fill(self, count: int) -> None:
        """Have at least `count` batches waiting."""
        self._wait()
        self._pull(count - len(self._waiting))
        if len(self._waiting) < count:
            raise UserError(
                f"the data ended after {self._position + len(self._waiting)} batches, and the "
                "training takes one a step: give something that can be iterated again, such as a "
                "list or a data loader, or set fewer steps"
            )

    def _pull(self, count: int) -> None:
        """Let `count` more batches wait, or as many as there are."""
        for _ in range(count):
            batch = self._next()
            if self._ended:
                return
            self._waiting.append(self._checked(batch))

    def _next(self) -> PyTree:
        try:
            batch = next(self._iterator)
            self._fresh = False
            return batch
        except StopIteration:
            again = iter(self._batches)
            if again is self._iterator or self._fresh:  # used up, or empty
                self._ended = True
                return None
            self._iterator, self._fresh = again, True
            return self._next()

    def _checked(self, batch: PyTree) -> PyTree:
        batch = jax.tree.map(lambda leaf: np.asarray(as_array(leaf)), batch)
        layout = [(leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(batch)]
        sizes = {shape[:1] for shape, _ in layout}
        if len(sizes) != 1 or () in sizes or (0,) in sizes:
            raise UserError(
                f"a batch must be arrays of the same number of rows, at least one, got {layout}"
            )
        if self._layout is None:
            self._layout = layout
        if layout != self._layout:
            raise UserError(
                f"all batches must be alike; the first is {self._layout}, a later one {layout} "
                "(leave out the rest of an epoch, as drop_last=True does)"
            )
        return batch
