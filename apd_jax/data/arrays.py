"""Batches in shuffled epochs from data whose rows can be read in any order.

Letters: B batch, N examples.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import randomness
from apd_jax.data import tables
from apd_jax.data.numbers import by_name
from apd_jax.data.source import MOST_BYTES, POOL, Source, affordable, take
from apd_jax.errors import UserError
from apd_jax.runtime import checksum
from apd_jax.sites import PyTree

_ON_DEVICE = 256 * 2**20  # bytes; larger data stay where they are


class Arrays(Source):
    """Shuffled epochs of N rows; the order of an epoch follows from seed and epoch.

    Small arrays are put on the device once. Of others, and of what is in files, the rows of the
    next steps are read. Both give the same batches.

    Args:
      tree: pytree of arrays, memory-mapped arrays, Hugging Face data sets or their columns.
      seed: decides the order.
    """

    def __init__(self, tree: PyTree, seed: int):
        self._tables = by_name(tables.as_table, tree)
        leaves = self._leaves()
        self._count = _rows(leaves)
        self._bytes_each = sum(table.nbytes for table in leaves) // self._count
        self._key = randomness.stream(np.uint32(seed), "order of the data")
        self._batch_size = 0  # until `with_batch_size`
        self._orders: dict[int, np.ndarray] = {}
        self._resident: PyTree = None
        if self._bytes_each * self._count <= _ON_DEVICE and all(t.in_memory for t in leaves):
            self._resident = by_name(lambda table: table.on_device(), self._tables)
        else:
            by_name(lambda table: table.check(), self._tables)

    @property
    def hint(self):
        rows = self.examples(0, 1)
        if isinstance(rows, dict):
            first = next(iter(rows), None)
            return (
                f"data are a dict of {list(rows)}, and are passed to the network as such: if the "
                f"network takes a single array, give one of them, such as data[{first!r}]"
            )
        if not isinstance(rows, tuple):
            return ""
        return (
            f"data are a tuple of {len(rows)} arrays, and are passed to the network as "
            "such: if the network takes only the first, as of inputs and labels, give data[0]"
        )

    def _leaves(self) -> list[tables.Table]:
        return jax.tree.leaves(self._tables)

    def with_batch_size(self, batch_size):
        other = copy.copy(self)
        other._batch_size, other._orders = batch_size, dict(self._orders)
        return other

    def most_steps(self):
        if self._resident is not None:
            return None
        return max(1, MOST_BYTES // (self._bytes_each * self._batch_size))

    def feed(self, step, length):
        rows = self._rows_of(step, length)
        if self._resident is not None:
            rows = rows.reshape(length, self._batch_size).astype(np.int32)
            return {"arrays": self._resident, "rows": rows, "start": np.int32(step)}
        batches = jax.tree.map(
            lambda leaf: leaf.reshape(length, self._batch_size, *leaf.shape[1:]),
            tables.read(self._tables, rows),
        )
        return {"batches": batches, "start": np.int32(step)}

    def _rows_of(self, step: int, length: int) -> np.ndarray:
        """The rows [length·B] that the steps from `step` read, one batch after another."""
        places = np.arange(step * self._batch_size, (step + length) * self._batch_size)
        epochs, rows = np.divmod(places, self._count)
        wanted = range(epochs[0], epochs[-1] + 1)
        self._orders = {epoch: self._order(epoch) for epoch in wanted}
        for epoch in wanted:
            here = epochs == epoch
            rows[here] = self._orders[epoch][rows[here]]
        return rows

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            key = jax.random.fold_in(self._key, epoch)
            self._orders[epoch] = randomness.permutation(key, self._count)
        return self._orders[epoch]

    def batch(self, fed, step, key, batch_size):
        if "batches" in fed:
            return take(fed["batches"], step - fed["start"])
        return take(fed["arrays"], fed["rows"][step - fed["start"]])

    def examples(self, seed, count):
        rows = np.sort(self._order(0)[: affordable(count, self._bytes_each)])
        if self._resident is not None:
            return take(self._resident, rows)
        return jax.tree.map(jnp.asarray, tables.read(self._tables, rows))

    def pool(self, seed, step):
        if self._resident is not None:
            return self._resident
        key = jax.random.fold_in(randomness.stream(np.uint32(seed), "examples"), step)
        order = randomness.permutation(key, self._count)
        rows = order[: affordable(POOL, self._bytes_each)]
        return tables.read(self._tables, np.sort(rows))

    def describe(self):
        leaves = self._leaves()
        found = {str(i): table.sha256() for i, table in enumerate(leaves)}
        return f"arrays {[t.describe() for t in leaves]}, sha256 {checksum.combine(found)}"


def _rows(leaves: list[tables.Table]) -> int:
    """N, the same of all."""
    counts = [len(table) for table in leaves]
    if len(set(counts)) != 1 or 0 in counts:
        raise UserError(
            f"data must be arrays [N, ...] of the same N, at least one, got N = {counts}; a list "
            "is taken for batches"
        )
    return counts[0]
