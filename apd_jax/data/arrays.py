"""Batches from arrays that are there as a whole.

Letters: B batch, N examples.
"""

import jax
import numpy as np

from apd_jax import randomness
from apd_jax.data.source import Source, as_array, take
from apd_jax.errors import UserError
from apd_jax.runtime.checksum import fingerprint
from apd_jax.sites import PyTree

_permutation = jax.jit(jax.random.permutation, static_argnums=1)


class Arrays(Source):
    """Shuffled epochs of arrays [N, ...]; the order of an epoch follows from seed and epoch."""

    feeds = True

    def __init__(self, tree: PyTree, seed: int):
        self._arrays = jax.tree.map(as_array, tree)
        lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(self._arrays)}
        if len(lengths) != 1 or () in lengths or (0,) in lengths:
            shapes = [leaf.shape for leaf in jax.tree.leaves(self._arrays)]
            raise UserError(
                f"data must be arrays [N, ...] of the same N, got shapes {shapes}; a list is taken "
                "for batches"
            )
        (self._count,) = lengths.pop()
        self._key = randomness.stream(np.uint32(seed), "order of the data")
        self._batch_size = 1
        self._orders: dict[int, np.ndarray] = {}

    def check(self, batch_size):
        self._batch_size = batch_size

    def feed(self, step, length):
        places = np.arange(step * self._batch_size, (step + length) * self._batch_size)
        epochs, rows = np.divmod(places, self._count)
        wanted = range(epochs[0], epochs[-1] + 1)
        self._orders = {e: self._orders[e] if e in self._orders else self._order(e) for e in wanted}
        for epoch in wanted:
            here = epochs == epoch
            rows[here] = self._orders[epoch][rows[here]]
        rows = rows.reshape(length, self._batch_size).astype(np.int32)
        return {"arrays": self._arrays, "rows": rows, "start": np.int32(step)}

    def _order(self, epoch: int) -> np.ndarray:
        return np.asarray(_permutation(jax.random.fold_in(self._key, epoch), self._count))

    def batch(self, fed, step, key, batch_size):
        return take(fed["arrays"], fed["rows"][step - fed["start"]])

    def examples(self, seed, count):
        return take(self._arrays, np.sort(self._order(0)[:count]))

    def describe(self):
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self._arrays)]
        return f"arrays {[list(leaf.shape) for leaf in leaves]}, sha256 {fingerprint(leaves)}"
