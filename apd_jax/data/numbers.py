"""Numbers of data in JAX's dtypes, all finite."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.errors import UserError, about
from apd_jax.sites import PyTree
from apd_jax.sites.given_arrays import as_numpy, check_kind
from apd_jax.sites.parameters import native

_BLOCK_BYTES = 16 * 2**20


def to_numpy(leaf: Any) -> np.ndarray:
    """The numbers of a leaf in JAX's dtypes, all finite; a view of the leaf's memory if possible.

    Raises:
      UserError: no array of numbers, numbers that are not finite, integers that JAX's narrower
        dtype can't hold.
    """
    array = as_numpy(leaf)
    check_kind(array.dtype)
    array = native(array)
    narrow = np.dtype(jax.dtypes.canonicalize_dtype(array.dtype))
    if narrow != array.dtype and array.dtype.kind in "iu" and array.size:
        limits = jnp.iinfo(narrow)
        if array.min() < limits.min or array.max() > limits.max:
            raise UserError(
                f"data contain integers from {array.min()} to {array.max()}, but JAX computes "
                f"with {narrow}: use smaller numbers, or set jax_enable_x64"
            )
    with np.errstate(over="ignore"):
        array = array.astype(narrow, copy=False)
    check_finite(array)
    return array


def by_name(function: Callable, tree: PyTree, what: str = "data", is_leaf: Any = None) -> PyTree:
    """A function of every leaf; its errors begin with where the leaf is, such as `data['x']`."""

    def named(path, leaf):
        if not path:
            return function(leaf)
        with about(what + jax.tree_util.keystr(path)):
            return function(leaf)

    return jax.tree_util.tree_map_with_path(named, tree, is_leaf=is_leaf)


def check_finite(array: np.ndarray | jax.Array) -> None:
    """Raise UserError if some numbers are not finite."""
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return
    finite = jnp.isfinite if isinstance(array, jax.Array) else np.isfinite
    if not finite(array).all():
        raise UserError("data contain NaN or infinity: leave such examples out")


def blocks(array: Any) -> Iterator[np.ndarray]:
    """The rows of an array as `to_numpy` gives them, a block of bounded size at a time."""
    rows = max(1, _BLOCK_BYTES * len(array) // max(array.nbytes, 1))
    for start in range(0, len(array), rows):
        yield to_numpy(array[start : start + rows])


class _Bare(str):
    """Text whose `repr` has no quotes."""

    __repr__ = str.__str__


def layout(tree: PyTree) -> str:
    """Dtypes and shapes, such as `{'x': float32[32, 10]}`."""
    return repr(jax.tree.map(lambda leaf: _Bare(f"{leaf.dtype.name}{list(leaf.shape)}"), tree))
