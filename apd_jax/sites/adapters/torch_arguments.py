"""Inputs and keywords of `forward`: what the caller passed, as JAX arrays and as torch's tensors.

Letters: B batch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from apd_jax.errors import UserError
from apd_jax.sites import given_arrays

PyTree = Any


def plain(inputs: PyTree) -> PyTree:
    """Inputs in dicts, tuples and lists, all of them arrays; lists of numbers become arrays.

    Raises:
      UserError: something is no array.
    """
    given_arrays.check_nested(inputs)
    if given_arrays.is_rows_of_numbers(inputs):
        return given_arrays.as_array(inputs)
    if isinstance(inputs, Mapping):
        return {name: plain(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple) and hasattr(inputs, "_fields"):  # a NamedTuple
        return type(inputs)(*map(plain, inputs))
    if isinstance(inputs, tuple | list):
        return type(inputs)(plain(value) for value in inputs)
    if not hasattr(inputs, "shape") or not hasattr(inputs, "dtype") or not len(inputs.shape):
        raise UserError(
            "inputs must be what forward takes: a tensor or array [B, ...], a dict of them for "
            f"keywords, or a tuple for positions; got {inputs!r:.80}. Pass what is the same for "
            "all examples, such as use_cache=False, as a keyword of from_torch"
        )
    return inputs


def as_jax(leaf: Any) -> jax.Array:
    """A copy as a JAX array.

    Raises:
      UserError: what are no numbers, or whole numbers that its narrower dtype can't hold.
    """
    given = given_arrays.as_array(given_arrays.as_numpy(leaf))
    array = jnp.array(given)
    if jnp.issubdtype(array.dtype, jnp.integer) and given.dtype != array.dtype and given.size:
        limits = jnp.iinfo(array.dtype)
        largest = max(int(given.min()), int(given.max()), key=abs)
        if not limits.min <= largest <= limits.max:
            raise UserError(
                f"an array has the number {largest}, which does not fit {array.dtype}: use smaller "
                "numbers"
            )
    return array


def as_torch(leaf: Any, module: torch.nn.Module, dtype: torch.dtype | None) -> torch.Tensor:
    """A copy as a tensor where the module is, as torch's users have them: int64, float32.

    Args:
      leaf: tensor or array.
      module: the module, of which one parameter tells the device.
      dtype: dtype to which floating numbers are converted; None to leave them.
    """
    first = next(module.parameters())
    if isinstance(leaf, torch.Tensor):
        tensor = leaf.detach().clone()
    elif leaf.dtype == jnp.bfloat16:
        tensor = torch.from_numpy(np.array(leaf, np.float32)).bfloat16()
    else:
        tensor = torch.from_numpy(np.array(as_jax(leaf)))
        if not tensor.is_floating_point() and tensor.dtype not in (torch.bool, torch.uint8):
            tensor = tensor.to(torch.int64)
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return tensor.to(first.device)


def is_array(value: Any) -> bool:
    """Whether this is a tensor of torch, or an array of NumPy's or JAX's numbers; no scalar."""
    if isinstance(value, np.ndarray | jax.Array):
        return any(jnp.issubdtype(value.dtype, kind) for kind in (np.number, np.bool_))
    return isinstance(value, torch.Tensor)


def map_arrays(function: Callable[[Any], Any], value: Any) -> Any:
    """Keywords with a function of every array in them, also in dicts, lists and tuples."""
    if is_array(value):
        return function(value)
    if type(value) is dict:
        return {name: map_arrays(function, part) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map_arrays(function, part) for part in value)
    return value


def arguments(x: Any) -> tuple[tuple, dict[str, Any]]:
    """What `forward` is called with: a dict as keywords, a tuple or list as positions."""
    if isinstance(x, Mapping):
        return (), dict(x)
    return (tuple(x), {}) if isinstance(x, tuple | list) else ((x,), {})


def as_array(tensor: torch.Tensor) -> jax.Array:
    """A JAX array with the numbers of a tensor, which share no memory."""
    return jnp.array(given_arrays.as_numpy(tensor))
