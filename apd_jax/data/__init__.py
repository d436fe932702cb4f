"""Where batches come from: a sampling function, rows of data, or an iterable of batches.

A source hands the loop what its steps read (`pieces`), and the step its batch (`batch`).
Letters: B batch, N examples.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import jax

from apd_jax.data.arrays import Arrays
from apd_jax.data.batches import Batches
from apd_jax.data.beside import Beside
from apd_jax.data.numbers import by_name
from apd_jax.data.reader import Reader
from apd_jax.data.sampler import Sampler
from apd_jax.data.source import SampleBatch, Source
from apd_jax.data.tables import is_dataset
from apd_jax.errors import UserError
from apd_jax.sites import PyTree
from apd_jax.sites.given_arrays import as_array, check_nested, is_rows_of_numbers, plain

__all__ = [
    "Arrays",
    "Batches",
    "Beside",
    "Data",
    "Reader",
    "SampleBatch",
    "Sampler",
    "Source",
    "as_source",
]

Data = SampleBatch | PyTree | Iterable[PyTree]


def as_source(data: Data | Source, seed: int = 0) -> Source:
    """The source of what a user gives as data.

    Args:
      data: a function `(key, batch_size) -> x [B, ...]`; an array, dict, tuple or other pytree of
        arrays [N, ...], of NumPy (memory-mapped ones are read as needed), JAX or torch, of lists of
        numbers in a dict or tuple, or of Hugging Face data sets or their columns; or an iterable of
        batches (a list, a generator, a torch `DataLoader`, a batched data set of grain).
      seed: decides the order of rows.

    Raises:
      UserError: none of these.
    """
    if isinstance(data, Source):
        return data
    for leaf in jax.tree.leaves(plain(data)) if isinstance(data, Mapping | tuple) else [data]:
        check_nested(leaf)
    if callable(data) and not hasattr(data, "__iter__"):
        return Sampler(data)
    if isinstance(data, list) or (_is_iterable(data) and not is_dataset(data)):
        return Batches(cast(Iterable[Any], data))
    data = by_name(_rows, plain(data), is_leaf=is_rows_of_numbers)
    leaves = jax.tree.leaves(data)
    if leaves and all(is_dataset(leaf) or hasattr(leaf, "shape") for leaf in leaves):
        _check_splits(data, leaves)
        return Arrays(data, seed)
    raise UserError(
        "data must be a sampling function (key, batch_size) -> x, arrays [N, ...], or an iterable "
        f"of batches; got {type(data).__name__}{_way_out(data)}"
    )


def _rows(leaf: Any) -> Any:
    """Lists of Python's numbers, as a tokenizer gives them, as an array; others as they are."""
    return as_array(leaf) if is_rows_of_numbers(leaf) else leaf


def _is_iterable(node: Any) -> bool:
    """Whether this is an iterable that is neither an array nor a container of arrays."""
    known = isinstance(node, Mapping | tuple | list | str | bytes) or hasattr(node, "shape")
    return isinstance(node, Iterable) and not known


def _check_splits(data: PyTree, leaves: list[Any]) -> None:
    """Refuse a dict of data sets, the usual form of a training and a test set."""
    if isinstance(data, dict) and all(hasattr(leaf, "column_names") for leaf in leaves):
        raise UserError(
            f"data holds several data sets, {sorted(data)}: choose one of them, such as "
            f"data[{next(iter(data))!r}]"
        )


def _way_out(data: Any) -> str:
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not hasattr(data, "__iter__"):
        return (
            ", whose items are examples: wrap it in a loader of batches, such as "
            "torch.utils.data.DataLoader(data, batch_size=32, drop_last=True)"
        )
    if isinstance(data, dict | tuple):
        kinds = sorted({type(leaf).__name__ for leaf in jax.tree.leaves(data)})
        return f" of {', '.join(kinds) or 'nothing'}: every leaf must be an array"
    return ""
