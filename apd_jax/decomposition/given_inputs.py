"""Inputs that a finished decomposition is asked about, in whatever form users have them.

Letters: B batch.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from apd_jax import sites
from apd_jax.data.numbers import as_numpy, check_kind, is_rows_of_numbers, is_torch, plain
from apd_jax.errors import UserError
from apd_jax.sites import PyTree, Target
from apd_jax.sites.parameters import native


def given_inputs(target: Target, x: PyTree) -> PyTree:
    """Inputs [B, ...] as JAX's or NumPy's arrays, which the network takes.

    Raises:
      UserError: inputs that are no arrays, are empty, or that the network does not take; a single
        example without the batch axis.
    """
    if isinstance(x, Iterator):
        raise UserError("inputs must be arrays [B, ...], got an iterator: give one of its batches")
    x = jax.tree.map(as_array, plain(x), is_leaf=is_rows_of_numbers)
    sites.check_inputs(target, x)
    return x


def as_array(leaf: Any) -> Any:
    """An array of any library as JAX's or NumPy's; what is none as it is."""
    if isinstance(leaf, jax.Array | jax.core.Tracer):
        return leaf
    if isinstance(leaf, list) or is_torch(leaf) or hasattr(leaf, "__array__"):
        leaf = as_numpy(leaf)
    if not isinstance(leaf, np.ndarray):
        return leaf
    check_kind(leaf.dtype)
    return native(leaf)
