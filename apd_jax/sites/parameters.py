"""Parameters as JAX takes them, checked leaf by leaf."""

import dataclasses
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.errors import UserError
from apd_jax.sites.leaf_names import leaf_name

PyTree = Any


def native(array: np.ndarray) -> np.ndarray:
    """An array in this machine's byte order, and without extended precision; else as it is."""
    dtype = array.dtype
    wide = {"f": np.float64, "c": np.complex128}.get(dtype.kind)
    if wide is not None and dtype.itemsize > np.dtype(wide).itemsize:
        return array.astype(wide)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def checked(params: PyTree) -> PyTree:
    """The parameters, with arrays that JAX does not know converted; as they are if there are none.

    Raises:
      UserError: a leaf that is no array of numbers, or keys of a dict that can't be sorted.
    """
    try:
        leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    except ValueError as error:
        raise UserError(
            "the parameters are in a dict whose keys can't be sorted, such as text and numbers "
            f"together ({str(error).splitlines()[0]}): use text for all of them"
        ) from error
    found = [_checked(leaf_name(path), leaf) for path, leaf in leaves]
    if all(new is old for new, (_, old) in zip(found, leaves, strict=True)):
        return params
    return jax.tree.unflatten(tree, found)


def _checked(name: str, leaf: Any) -> Any:
    what = f"parameter {name!r}" if name else "the parameters"
    if isinstance(leaf, np.ma.MaskedArray):
        raise UserError(f"{what}: a masked array, whose mask would be lost; give leaf.filled(0)")
    if isinstance(leaf, np.ndarray | np.generic):
        if jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool:
            return native(leaf) if isinstance(leaf, np.ndarray) else leaf
        raise UserError(
            f"{what} must be an array of numbers, got one of {leaf.dtype}: convert it, or keep it "
            "out of the parameters"
        )
    known = isinstance(leaf, numbers.Number | jax.Array | jax.ShapeDtypeStruct | jax.core.Tracer)
    if known or (hasattr(leaf, "shape") and isinstance(getattr(leaf, "dtype", None), np.dtype)):
        return leaf
    way = "keep what is no array out of the parameters, as in functools.partial(network, value)"
    if dataclasses.is_dataclass(leaf):
        way = "register its class with jax.tree_util.register_dataclass, or give a dict"
    elif hasattr(leaf, "detach"):
        way = "give its numbers, .detach().cpu().numpy(), or the torch module to Target.from_torch"
    raise UserError(f"{what} must be an array of numbers, got a {type(leaf).__name__}: {way}")
