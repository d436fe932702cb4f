"""Parameters as JAX takes them, checked leaf by leaf."""

import dataclasses
import enum
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.config_fields.values import number
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
    """The parameters with plain keys, and with arrays that JAX does not know converted.

    What needs no change is returned as it is.

    Raises:
      UserError: a leaf that is no array of numbers, or a dict with keys that can't be sorted or
        saved.
    """
    params = plain_keys(params)
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


def plain_key(key: Any) -> Any:
    """A key of a dict as an equal one that JSON can hold, such as 1 for np.int64(1).

    Raises:
      UserError: the key is of another kind, such as bytes.
    """
    if isinstance(key, tuple):
        return tuple(map(plain_key, key))
    found = key.value if isinstance(key, enum.Enum) else number(key)
    if found is None or (isinstance(found, str | int | float) and found == key):
        return found
    raise UserError(
        f"the parameters are in a dict with the key {key!r:.100} of type {type(key).__name__}, "
        "which can't be saved: use text, numbers, or tuples of these"
    )


def plain_keys(tree: PyTree) -> PyTree:
    """The tree with dicts of plain keys, so that leaves keep their names when it is loaded.

    Containers that are code, and those without such dicts, stay the same objects.
    """
    if type(tree) is dict:
        named = {plain_key(key): plain_keys(part) for key, part in tree.items()}
        pairs = zip([*named, *named.values()], [*tree, *tree.values()], strict=True)
        return tree if all(new is old for new, old in pairs) else named
    if type(tree) in (list, tuple):
        parts = [plain_keys(part) for part in tree]
        same = all(new is old for new, old in zip(parts, tree, strict=True))
        return tree if same else type(tree)(parts)
    return tree


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
