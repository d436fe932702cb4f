"""Arrays of numbers from whatever users have: NumPy, JAX, torch, lists, tables.

Libraries are recognised only if the caller has imported them.
Letters: B batch.
"""

import numbers
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.errors import UserError, about
from apd_jax.sites.parameters import native

PyTree = Any

_MAPPINGS = ("dict", "OrderedDict", "defaultdict", "FrozenDict")  # that JAX takes for pytrees


def as_arrays(x: PyTree) -> PyTree:
    """Inputs [B, ...] as arrays of JAX or NumPy, in dicts, lists and other pytrees.

    Shapes (`jax.ShapeDtypeStruct`) stay as they are.

    Raises:
      UserError: an iterable of batches, or arrays of what are no numbers.
    """
    if isinstance(x, Iterator):  # that JAX does not take for a leaf
        return _input(x)
    return jax.tree.map(_input, plain(x), is_leaf=is_rows_of_numbers)


def _input(leaf: Any) -> Any:
    found = as_array(leaf)
    if isinstance(found, Iterable) and not (isinstance(found, str) or hasattr(found, "shape")):
        what = "an iterator" if isinstance(found, Iterator) else f"a {type(found).__name__}"
        raise UserError(f"inputs must be arrays [B, ...], got {what}: give one of its batches")
    return found


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


def matrices_of(name: str, given: Any) -> Any:
    """Matrices [..., n, m] as JAX's or NumPy's array; raises UserError for anything else."""
    with about(name):
        found = as_array(given)
    if len(getattr(found, "shape", ())) < 2:
        raise UserError(f"{name} must be an array of matrices [C, (G,) n, m], got {given!r:.100}")
    return found


def one_array(expected: str, given: Any, dtype: Any = None) -> jax.Array:
    """One array of numbers as JAX's.

    Raises:
      UserError: it is none; the message begins with what was expected.
    """
    try:
        return jnp.asarray(as_array(given), dtype)
    except (TypeError, ValueError) as error:
        raise UserError(f"{expected}: {error}") from error


def plain(tree: PyTree) -> PyTree:
    """The tree with mappings that JAX does not know, such as a tokenizer's output, as dicts.

    Raises:
      UserError: keys of a dict that can't be sorted, which JAX needs.
    """

    def known(node: Any) -> Any:
        if isinstance(node, Mapping) and type(node).__name__ not in _MAPPINGS:
            return plain(dict(node))
        return node

    try:
        jax.tree.structure(tree)
    except ValueError as error:
        raise UserError(
            "the arrays are in a dict whose keys can't be sorted, such as text and numbers "
            f"together ({str(error).splitlines()[0]}): use text for all of them"
        ) from error
    return jax.tree.map(known, tree)


def is_rows_of_numbers(node: Any) -> bool:
    """Whether this is a list of Python's numbers, or of lists or tuples of them, not of arrays."""
    within: Any = list
    while isinstance(node, within) and node:
        within = (list, tuple)
        node = node[0]
        if isinstance(node, numbers.Number | str) and not hasattr(node, "dtype"):
            return True
    return False


def is_torch(leaf: Any) -> bool:
    """Whether this is a tensor of torch."""
    torch = sys.modules.get("torch")
    return isinstance(leaf, getattr(torch, "Tensor", ()))


def check_nested(leaf: Any) -> None:
    """Raise UserError for a nested tensor of torch, which has no shape."""
    if is_torch(leaf) and leaf.is_nested:
        raise UserError(
            "expected arrays, got a nested tensor of torch, whose rows have different lengths: "
            "pad them to the same length, tensor.to_padded_tensor(0.0)"
        )


def as_numpy(leaf: Any) -> np.ndarray:
    """The leaf as an array of NumPy, of torch a copy.

    Raises:
      UserError: it can't be one.
    """
    if isinstance(leaf, jax.Array):
        check_kind(leaf.dtype)
    if is_torch(leaf):
        check_nested(leaf)
        return _from_torch(leaf)
    if isinstance(leaf, np.ma.MaskedArray):
        raise UserError(
            "expected numbers, got a masked array, whose mask would be lost: fill it with "
            "leaf.filled(0), or leave masked examples out"
        )
    if hasattr(leaf, "toarray") and hasattr(leaf, "nnz"):
        raise UserError("expected arrays, got a sparse matrix: give its .toarray()")
    try:
        found = np.asarray(leaf)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"expected arrays of numbers, which this {type(leaf).__name__} is not ({error}): "
            "rows of different lengths must be padded or cut to the same length"
        ) from error
    if found.dtype == object and not found.ndim:  # NumPy sees one thing in a set or a generator
        raise UserError(
            f"expected an array of numbers, got a {type(found.item()).__name__}: give an array or "
            "a list, in the order of the examples"
        )
    return found


def _from_torch(tensor: Any) -> np.ndarray:
    """A copy of a tensor; nothing that torch does to it later is seen."""
    if tensor.device.type == "meta":
        raise UserError("expected numbers, got a torch tensor on the device 'meta': it has none")
    try:
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        torch = sys.modules["torch"]
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(jnp.bfloat16).copy()
        return np.array(tensor.numpy(), copy=True)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"expected numbers, and a torch tensor of {tensor.dtype}, {tensor.layout} can't be "
            f"converted ({str(error).splitlines()[0]}): give a dense tensor, such as "
            "tensor.to_dense().float()"
        ) from error


def check_kind(dtype: np.dtype) -> None:
    """Raise UserError unless these are numbers."""
    if jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_):
        return
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        way = "convert it to numbers"
    elif dtype.names:
        way = f"give a dict of its fields {list(dtype.names)}"
    elif dtype.kind in "SUT":
        way = "leave text out, or give the ids of its tokens"
    elif dtype.kind == "O":
        way = (
            "choose the columns that hold numbers, give .astype('float32') where all are numbers, "
            "or make one array of rows of the same length with np.stack(rows), padding or cutting "
            "those that differ"
        )
    else:
        way = "convert it to numbers"
    raise UserError(f"expected numbers, got an array of {dtype}: {way}")
