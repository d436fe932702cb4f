"""The fixed part of the functions of all adapters: what they need besides the parameters."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from apd_jax.errors import UserError

PyTree = Any


class Fixed:
    """Fixed inputs of a network; equal only to themselves, so that jit reuses its programs."""

    def __init__(self, value: Any):
        self.value = value


class Adapted(Protocol):
    """A model as a function `(params, x) -> outputs`.

    Attributes:
      settings: how the model is called, as a JSON object.
      state: the fixed arrays, a pytree; of a restored model, with containers like the saved ones.
    """

    settings: dict[str, Any]
    state: PyTree

    def __call__(self, params: PyTree, x: PyTree) -> PyTree:
        """The network's outputs."""

    def with_state(self, state: PyTree) -> "Adapted":
        """The same model with other fixed arrays."""


def plain_keywords(keywords: dict[str, Any]) -> dict[str, Any]:
    """Keywords as JSON; `{"not saved": type}` in place of a value that JSON does not hold."""
    return {name: _plain(value) for name, value in keywords.items()}


def saved_keywords(saved: dict[str, Any], constructor: str) -> dict[str, Any]:
    """Keywords from what `plain_keywords` gave.

    Args:
      saved: the JSON object.
      constructor: how the user may build the target, for the error's text.

    Raises:
      UserError: one of them could not be saved.
    """
    for name, value in saved.items():
        refuse_unsaved(f"the keyword {name}", value, constructor)
    return dict(saved)


def refuse_unsaved(what: str, value: Any, constructor: str) -> None:
    """Raise UserError where `value` marks something that is code and was not saved."""
    if isinstance(value, dict) and "not saved" in value:
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


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list) and all(_plain(item) is item for item in value):
        return value
    return {"not saved": type(value).__name__}
