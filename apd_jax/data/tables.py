"""Data of N rows that can be read in any order: arrays, memory-mapped files, Hugging Face data.

Letters: N examples, n rows that are read at a time.
"""

import datetime
import functools
import mmap
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.data.numbers import blocks, check_finite, layout, to_numpy
from apd_jax.data.source import MOST_BYTES, affordable
from apd_jax.errors import UserError
from apd_jax.runtime import checksum
from apd_jax.sites import PyTree
from apd_jax.sites.given_arrays import as_numpy, check_kind, plain

_SAMPLE = 1024  # rows that stand for a data set or a large file
_LARGE = 256 * 2**20  # bytes; larger files are not read whole to check them
_DATES = (datetime.date, datetime.timedelta, np.datetime64, np.timedelta64)
_ROWS_OF_A_FILE = 32  # that are read at a time


class ArrayTable:
    """Rows of an array [N, ...], in memory or in a memory-mapped file."""

    def __init__(self, array: Any):
        self.array = array
        file = _memmap(array)
        self.in_memory = file is None
        # Pages of a copy-on-write mapping may hold changes that are nowhere else.
        self._mapping = None if file is None or file.mode == "c" else _mapping_of(file)

    def __len__(self) -> int:
        return self.array.shape[0]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.array.nbytes

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Rows [n, ...] as JAX's numbers."""
        if self._mapping is None:
            return to_numpy(self.array[rows])
        # A touched page may bring in 2 MB around it: few rows at a time, neighbours together.
        order = np.argsort(rows, kind="stable")
        most = max(1, min(_ROWS_OF_A_FILE, MOST_BYTES * len(self) // max(self.nbytes, 1)))
        found = np.empty((len(rows), *self.array.shape[1:]), to_numpy(self.array[:1]).dtype)
        for start in range(0, len(rows), most):
            places = order[start : start + most]
            found[places] = to_numpy(self.array[rows[places]])
            self._forget()
        return found

    def check(self) -> None:
        """Raise UserError unless all are numbers.

        Of a large file these are rows spread over it; others are checked when they are read.
        """
        if isinstance(self.array, jax.Array):
            self.on_device()
        elif self.in_memory or self.nbytes <= _LARGE:
            for _ in self._blocks():
                pass
        else:
            self.read(_spread(len(self), self.nbytes))

    def on_device(self) -> jax.Array:
        """The array as JAX's: its own as it is, unless on a device of the caller's choice."""
        if not isinstance(self.array, jax.Array) or self.array.committed:
            return jnp.asarray(to_numpy(self.array))
        check_finite(self.array)
        return self.array

    def sha256(self) -> str:
        """Digest of all numbers, read a block at a time."""
        if isinstance(self.array, jax.Array):
            return checksum.sha256_of_blocks([np.asarray(self.array)])
        return checksum.sha256_of_blocks(self._blocks())

    def describe(self) -> list[int]:
        """The shape."""
        return list(self.array.shape)

    def _blocks(self):
        for block in blocks(self.array):
            yield block
            self._forget()

    def _forget(self) -> None:
        """Take a file's pages out of this process; the system's cache keeps them while it can."""
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)


class DatasetTable:
    """Rows of a Hugging Face `Dataset`, a dict of columns, or of one of its columns."""

    in_memory = False

    def __init__(self, dataset: Any):
        self._column = getattr(dataset, "column_name", None)
        self._dataset = dataset.source if self._column is not None else dataset
        if self._dataset.format["type"] is None:  # lists are slow to convert
            columns = self._dataset.format["columns"]
            self._dataset = self._dataset.with_format("numpy", columns=columns)

    def __len__(self) -> int:
        return len(self._dataset)

    @functools.cached_property
    def _row(self) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[0], self.read(np.arange(1)))

    @property
    def nbytes(self) -> int:
        """Size in bytes, if all rows are like the first."""
        return len(self) * sum(leaf.nbytes for leaf in jax.tree.leaves(self._row))

    def read(self, rows: np.ndarray) -> PyTree:
        """Rows [n, ...] as JAX's numbers, of a data set by column."""
        try:
            found = self._dataset[rows.tolist()]
        except TypeError as error:  # of torch and JAX, to which they can't be converted
            raise UserError(
                f"the data set can't be read as {self._dataset.format['type']} ({error}): leave "
                "out columns that are no numbers with dataset.select_columns([...]), or turn their "
                "entries, such as dates, into numbers with dataset.map"
            ) from error
        if not isinstance(found, Mapping):
            raise UserError(
                f"the data set gives a {type(found).__name__}: choose another format with "
                "dataset.with_format('numpy')"
            )
        names = list(found) if self._column is None else [self._column]
        columns = {name: _column(name, found[name]) for name in names}
        return columns if self._column is None else columns[self._column]

    def check(self) -> None:
        """Raise UserError unless rows spread over the data set are numbers of the same shape."""
        self.read(self._sample())

    def sha256(self) -> str:
        """Digest of rows spread over the data set."""
        return checksum.fingerprint(self.read(self._sample()))

    def describe(self) -> str:
        """Number and layout of the rows."""
        return f"{len(self)} rows of {layout(self._row)}, {len(self._sample())} of them compared"

    def _sample(self) -> np.ndarray:
        return _spread(len(self), self.nbytes)


Table = ArrayTable | DatasetTable


def as_table(leaf: Any) -> Table:
    """The rows of an array, data set or column.

    Raises:
      UserError: something else, or a leaf that holds no rows of numbers.
    """
    if is_dataset(leaf):
        return DatasetTable(leaf)
    array = leaf if isinstance(leaf, jax.Array) else as_numpy(leaf)
    check_kind(array.dtype)
    if not array.ndim:
        raise UserError(f"data must be arrays [N, ...] of the same N, got a single number {leaf}")
    return ArrayTable(array)


def is_dataset(leaf: Any) -> bool:
    """Whether this is a Hugging Face `Dataset` with random access, or a column of one."""
    if hasattr(leaf, "column_name") and hasattr(leaf, "source"):
        leaf = leaf.source
    named = hasattr(leaf, "column_names") and hasattr(leaf, "with_format")
    return named and hasattr(leaf, "__len__") and hasattr(leaf, "format")


def read(tables: PyTree, rows: np.ndarray) -> PyTree:
    """Rows [n, ...] of every table."""
    return jax.tree.map(lambda table: table.read(rows), tables)


def _spread(count: int, nbytes: int) -> np.ndarray:
    """Rows spread over N, `_SAMPLE` or fewer: what they take of all bytes is bounded."""
    some = affordable(_SAMPLE, nbytes // count)
    return np.unique(np.linspace(0, count - 1, some).astype(np.int64))


def _column(name: str, values: Any) -> PyTree:
    try:
        if isinstance(values, list):
            values = np.stack([to_numpy(value) for value in values])
        return jax.tree.map(to_numpy, plain(values))
    except (UserError, ValueError) as error:
        raise UserError(
            f"column {name!r} of the data set is not an array of numbers ({error}): "
            f"{_way_out(values)}, or leave the column out with dataset.select_columns([...])"
        ) from error


def _way_out(values: Any) -> str:
    """What to do with a column that is no array of numbers."""
    entries = list(_entries(values))
    if any(isinstance(entry, Mapping) for entry in entries):
        return "make columns of its fields with dataset.flatten()"
    if any(isinstance(entry, str) for entry in entries):
        return "turn its text into numbers, such as ids of tokens, with dataset.map"
    if any(isinstance(entry, _DATES) for entry in entries):
        return "turn its dates into numbers with dataset.map"
    if any(entry is None for entry in entries):
        return "fill missing entries with dataset.map, or leave out their rows with dataset.filter"
    return "pad or cut its rows to one length (a tokenizer's padding='max_length', truncation=True)"


def _entries(values: Any) -> Iterator[Any]:
    """What lists and arrays hold that is no number; None for NaN, which stands for it."""
    if isinstance(values, list) or isinstance(values, np.ndarray) and values.dtype == object:
        for value in values:
            yield from _entries(value)
    elif hasattr(values, "dtype"):
        array = np.asarray(values)
        if array.dtype.kind in "MmUS":
            yield from array.ravel()[:1]
        elif np.isnan(array).any():
            yield None
    elif not isinstance(values, numbers.Number) or values != values:
        yield None if isinstance(values, numbers.Number) else values


def _memmap(array: Any) -> np.memmap | None:
    """The memory-mapped file that an array is a view of, if any."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and isinstance(_mapping_of(array), mmap.mmap):
            return array
        array = array.base
    return None


def _mapping_of(array: Any) -> Any:
    """The mapping under a `np.memmap`, which NumPy's types omit."""
    return array._mmap
