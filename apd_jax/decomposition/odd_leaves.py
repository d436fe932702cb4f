"""Leaves of a network that files of arrays can't hold as they are.

PRNG keys, empty arrays, and numbers of 8 bits or fewer that not every file format has.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def packed(leaves: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The leaves that files can hold, and notes on the others, a JSON object.

    Keys become their words, small numbers wider ones; empty arrays are left out.
    """
    arrays: dict[str, Any] = {}
    notes: dict[str, Any] = {}
    for name, leaf in leaves.items():
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            notes[name] = {"key": str(jax.random.key_impl(leaf))}
            leaf = jax.random.key_data(leaf)
        wide = _wide(jnp.result_type(leaf))
        if wide is not None:
            notes[name] = {"dtype": str(jnp.result_type(leaf))}
            leaf = jnp.asarray(leaf).astype(wide)
        if jnp.size(leaf):
            arrays[name] = leaf
        else:
            shape = list(jnp.shape(leaf))
            notes.setdefault(name, {})["empty"] = [shape, str(jnp.result_type(leaf))]
    return arrays, notes


def unpacked(arrays: Mapping[str, Any], notes: Mapping[str, Any], name: str) -> jax.Array:
    """The leaf of a name; the inverse of `packed`."""
    note = notes.get(name, {})
    if "empty" in note:
        shape, dtype = note["empty"]
        leaf = jnp.zeros(shape, jnp.dtype(dtype))
    else:
        leaf = jnp.asarray(arrays[name])
    if "dtype" in note:
        return leaf.astype(note["dtype"])
    return jax.random.wrap_key_data(leaf, impl=note["key"]) if "key" in note else leaf


def _wide(dtype: Any) -> Any:
    """A dtype that every file has, for one that some lack and whose numbers it holds; or None."""
    if jnp.issubdtype(dtype, jnp.integer) and np.dtype(dtype).kind not in "iu":
        return np.int8 if jnp.issubdtype(dtype, jnp.signedinteger) else np.uint8
    if jnp.issubdtype(dtype, jnp.floating) and np.dtype(dtype).itemsize == 1:
        return np.float32
    return None
