"""The fixed part of the functions of all adapters: what they need besides the parameters."""

import base64
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.config_fields.values import number
from apd_jax.errors import UserError

PyTree = Any


class Fixed:
    """Fixed inputs of a network; equal only to themselves, so that jit reuses its programs."""

    def __init__(self, value: Any):
        self.value = value


def plain_keywords(keywords: dict[str, Any]) -> dict[str, Any]:
    """Keywords as JSON; see `plain`."""
    return {name: plain(value) for name, value in keywords.items()}


def saved_keywords(saved: dict[str, Any], constructor: str) -> dict[str, Any]:
    """Keywords from what `plain_keywords` gave.

    Args:
      saved: the JSON object.
      constructor: how the user may build the target, for the error's text.

    Raises:
      UserError: one of them could not be saved.
    """
    return {name: saved_value(f"the keyword {name}", saved[name], constructor) for name in saved}


def saved_value(what: str, value: Any, constructor: str) -> Any:
    """A value from what `plain` gave; raises UserError where it was not saved."""
    refuse_unsaved(what, value, constructor)
    return _made(value)


def refuse_unsaved(what: str, value: Any, constructor: str) -> None:
    """Raise UserError where `value` marks something that is code and was not saved."""
    if _is_unsaved(value):
        raise UserError(
            f"{what} was a {value['not saved']}, which is not saved: load with {constructor}"
        )


def check_state(own: PyTree, saved: PyTree) -> None:
    """Raise UserError unless saved arrays have the names and shapes of a model's own."""
    if jax.tree.map(jnp.shape, own) != jax.tree.map(jnp.shape, saved):
        found = [[*map(jnp.shape, jax.tree.leaves(state))] for state in (own, saved)]
        raise UserError(
            "the fixed parts of the model, such as its buffers, differ from the saved ones: it "
            f"has arrays of shapes {found[0]}, saved were {found[1]}"
        )


def plain(value: Any) -> Any:
    """A value as JSON, from which `saved_value` makes an equal one; NumPy's scalars as Python's.

    Tuples, dicts and arrays become objects of one entry, named by the kind. So does what is not
    saved, such as functions: `{"not saved": type}`, also in place of what holds it.
    """
    value = number(value) if isinstance(value, np.generic) else value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value) is np.ndarray or isinstance(value, jax.Array):
        return _plain_array(value)
    if isinstance(value, list) or type(value) is tuple:
        parts = list(map(plain, value))
    elif type(value) is dict:
        parts = [plain(part) for item in value.items() for part in item]
    else:
        return {"not saved": type(value).__name__}
    for part in parts:
        if _is_unsaved(part):
            return {"not saved": f"{type(value).__name__} with a {part['not saved']}"}
    return parts if isinstance(value, list) else {type(value).__name__: parts}


def _plain_array(array: np.ndarray | jax.Array) -> dict[str, Any]:
    if not (jnp.issubdtype(array.dtype, np.number) or array.dtype == bool):  # keys, objects
        return {"not saved": f"{type(array).__name__} of {array.dtype}"}
    name = array.dtype.name
    native = np.asarray(array).astype(jnp.dtype(name))  # whatever the order of its bytes
    kind = "jax" if isinstance(array, jax.Array) else "numpy"
    return {kind: [name, list(array.shape), base64.b64encode(native.tobytes()).decode()]}


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_made, value))
    if not isinstance(value, dict):
        return value
    ((kind, parts),) = value.items()
    if kind == "tuple":
        return tuple(map(_made, parts))
    if kind == "dict":
        made = list(map(_made, parts))
        return dict(zip(made[::2], made[1::2], strict=True))
    name, shape, data = parts
    array = np.ndarray(shape, jnp.dtype(name), base64.b64decode(data)).copy()
    return jnp.asarray(array) if kind == "jax" else array


def _is_unsaved(value: Any) -> bool:
    return isinstance(value, dict) and "not saved" in value
