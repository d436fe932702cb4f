"""Where batches come from: a sampling function, arrays, or an iterable of batches.

A source hands the loop what its steps read (`feed`), and the step its batch (`batch`).
Letters: B batch, N examples.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax

from apd_jax.data.arrays import Arrays
from apd_jax.data.batches import Batches
from apd_jax.data.sampler import Sampler
from apd_jax.data.source import SampleBatch, Source
from apd_jax.errors import UserError
from apd_jax.sites import PyTree

__all__ = ["Arrays", "Batches", "Data", "SampleBatch", "Sampler", "Source", "as_source"]

Data = SampleBatch | PyTree | Iterable[PyTree]


def as_source(data: Data | Source, seed: int = 0) -> Source:
    """The source of what a user gives as data.

    Args:
      data: a function `(key, batch_size) -> x [B, ...]`; an array, dict, tuple or other pytree of
        arrays [N, ...]; or an iterable of batches (a list, a data loader, a generator).
      seed: decides the order of arrays.

    Raises:
      UserError: nothing of these.
    """
    if isinstance(data, Source):
        return data
    if callable(data) and not hasattr(data, "__iter__"):
        return Sampler(data)
    if isinstance(data, list) or _is_iterable(data):
        return Batches(data)
    leaves = jax.tree.leaves(data, is_leaf=_is_iterable)
    if leaves and all(hasattr(leaf, "shape") for leaf in leaves):
        return Arrays(data, seed)
    raise UserError(
        "data must be a sampling function (key, batch_size) -> x, arrays [N, ...], or an iterable "
        f"of batches; got {type(data).__name__}"
    )


def _is_iterable(node: Any) -> bool:
    """Whether this is an iterable that is neither an array nor a container of arrays."""
    known = isinstance(node, Mapping | tuple | list | str | bytes) or hasattr(node, "shape")
    return isinstance(node, Iterable) and not known
