"""Batches that come ready-made.

Letters: B batch.
"""

import collections
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from apd_jax.data.numbers import by_name, layout, to_numpy
from apd_jax.data.source import MOST_BYTES, POOL, Source, take
from apd_jax.errors import UserError
from apd_jax.sites import PyTree
from apd_jax.sites.given_arrays import is_rows_of_numbers, plain

_SINGLE = (
    "if its items are single examples, give batches of them: np.stack(list(data)) as data, a "
    "loader's batch_size, or the .batch() of a data set"
)


class Batches(Source):
    """Ready-made batches, one a step.

    What can be iterated again starts over at its end, where a smaller batch is left out. Resuming
    at step t passes over t batches.
    """

    def __init__(self, batches: Iterable[PyTree]):
        self._batches, self._iterator = batches, iter(batches)
        self.repeats = isinstance(batches, list)  # a loader may shuffle anew
        self._waiting: collections.deque[PyTree] = collections.deque()  # read ahead
        self._position = 0  # of the first batch that waits
        self._fresh = self._warned = False
        self._first: PyTree = None  # shapes and dtypes
        self._seen: PyTree = None  # rows of the last steps

    def sizes(self):
        self._look(1)
        if not self._waiting and self._first is None:
            raise self._ended()
        return {"batch_size": self._size}

    def check(self, batch_size):
        found = self.sizes()["batch_size"]
        if found != batch_size:
            raise UserError(
                f"batches have {found} examples, batch_size is {batch_size}: leave batch_size out"
            )

    def most_steps(self):
        self.sizes()
        return max(1, MOST_BYTES // self._bytes)

    def feed(self, step, length):
        if step < self._position:
            raise UserError(
                f"batches from step {step} on are needed, and those before {self._position} were "
                "read already: call decompose with a fresh iterator"
            )
        self._pass_over(step)
        first = self._take()
        fed = jax.tree.map(lambda leaf: np.empty((length, *leaf.shape), leaf.dtype), first)
        for place in range(length):
            batch = first if place == 0 else self._take()
            for rows, leaf in zip(jax.tree.leaves(fed), jax.tree.leaves(batch), strict=True):
                rows[place] = leaf
        self._seen = jax.tree.map(lambda rows: rows.reshape(-1, *rows.shape[2:]), fed)
        return {"batches": fed, "start": np.int32(step)}

    def batch(self, fed, step, key, batch_size):
        return take(fed["batches"], step - fed["start"])

    def again(self):
        if iter(self._batches) is self._batches:
            raise UserError(
                "the data are an iterator, which gives its batches once, but several trainings "
                "need them: pass something that can be iterated again, such as a list or a data "
                "loader"
            )
        return Batches(self._batches)

    def examples(self, seed, count):
        self.sizes()
        self._look(min(-(-count // self._size), max(1, MOST_BYTES // self._bytes)))
        if not self._waiting and self._seen is None:
            raise self._ended()
        if self._waiting:
            found = jax.tree.map(lambda *leaves: np.concatenate(leaves), *self._waiting)
        else:  # a generator may be used up
            found = self._seen
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[:count]), found)

    def pool(self, seed, step):
        self._pass_over(step)
        return self.examples(seed, POOL)

    def describe(self):
        return "iterable of batches"

    @property
    def hint(self):
        if self._has_lists():
            return (
                f"an item of the data is {layout(self._first)}, in which lists stand where arrays "
                "should: a loader gets lists from an unformatted Hugging Face data set; use "
                "dataset.with_format('torch'), or pass the data set itself as data"
            )
        if isinstance(self._first, tuple | list):
            kind, count = type(self._first).__name__, len(self._first)
            many = f"{count} arrays" if count > 1 else "one array"
            return (
                f"an item of the data is a {kind} of {many}, and is passed to the network as such: "
                "if the network takes only the first, give an object whose __iter__ returns "
                "(batch[0] for batch in loader)"
            )
        single = all(leaf.ndim == 1 for leaf in jax.tree.leaves(self._first))
        return f"an item of the data is {layout(self._first)}; {_SINGLE}" if single else ""

    def _has_lists(self) -> bool:
        """Whether lists of single numbers for every example stand where arrays should."""
        if not isinstance(self._first, dict):
            return False
        lists = [part for part in self._first.values() if isinstance(part, list)]
        return any(all(leaf.ndim == 1 for leaf in jax.tree.leaves(part)) for part in lists)

    @property
    def _size(self) -> int:
        return jax.tree.leaves(self._first)[0].shape[0]

    @property
    def _bytes(self) -> int:
        leaves = jax.tree.leaves(self._first)
        return max(1, sum(leaf.size * leaf.dtype.itemsize for leaf in leaves))

    def _look(self, count: int) -> None:
        """Read copies of batches until `count` wait, or until there are no more.

        A loader may fill the same array again, hence the copies.
        """
        while len(self._waiting) < count:
            batch = self._next()
            if batch is None:
                return
            self._waiting.append(jax.tree.map(np.array, batch))

    def _pass_over(self, step: int) -> None:
        """Leave out the batches of the steps before this one."""
        while self._position < step:
            self._take()

    def _take(self) -> PyTree:
        """The next batch, which the next call may overwrite."""
        batch = self._waiting.popleft() if self._waiting else self._next()
        if batch is None:
            raise self._ended()
        self._position += 1
        return batch

    def _ended(self) -> UserError:
        count = self._position + len(self._waiting)
        if count == 0:
            return UserError(
                "the data gave no batch: an iterator that was used before is empty, and so is a "
                "loader with drop_last=True that has fewer examples than its batch_size"
            )
        return UserError(
            f"the data ended after {count} batches, but training takes one per step: pass "
            "something that can be iterated again, such as a list or a data loader, or set fewer "
            "steps"
        )

    def _next(self) -> PyTree | None:
        """The next batch that is not smaller than the others; None at the end."""
        while True:
            try:
                batch = self._checked(next(self._iterator))
            except StopIteration:
                if self._fresh:  # an iterator that is used up, or data without a batch
                    return None
                self._iterator, self._fresh = iter(self._batches), True
                continue
            if batch is not None:
                self._fresh = False
                return batch

    def _checked(self, batch: Any) -> PyTree | None:
        """The batch in NumPy's arrays; None if it is to be left out."""
        item = type(batch).__name__
        batch = by_name(to_numpy, plain(batch), "an item of the data", is_rows_of_numbers)
        leaves = jax.tree.leaves(batch)
        sizes = {leaf.shape[:1] for leaf in leaves}
        if not leaves or () in sizes:
            raise UserError(
                f"an item of the data is {layout(batch) if leaves else item}, and must be a batch "
                f"of arrays [B, ...]; {_SINGLE}"
            )
        if len(sizes) != 1 or (0,) in sizes:
            raise UserError(
                "a batch must be arrays of the same number of rows, at least one, got "
                f"{layout(batch)}"
            )
        if self._first is None:
            self._first = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch
            )
        return batch if self._alike(batch) else None

    def _alike(self, batch: PyTree) -> bool:
        """Whether a batch is like the first; False if it only has fewer rows, at which it warns.

        Raises:
          UserError: it differs otherwise.
        """

        def kinds(tree):
            return jax.tree.map(lambda leaf: (leaf.dtype.name, *leaf.shape[1:]), tree)

        rows = jax.tree.leaves(batch)[0].shape[0]
        if kinds(batch) == kinds(self._first) and rows == self._size:
            return True
        if kinds(batch) != kinds(self._first) or rows > self._size:
            raise UserError(
                f"all batches must be alike; the first is {layout(self._first)}, a later one "
                f"{layout(batch)} (pad or cut examples to one length; a smaller last batch of an "
                f"epoch is left out); {_SINGLE}"
            )
        if not self._warned:
            self._warned = True
            logging.warning(
                "A batch of %d examples is left out, as are all later ones smaller than %d: a "
                "loader's drop_last=True does the same.",
                rows,
                self._size,
            )
        return False
