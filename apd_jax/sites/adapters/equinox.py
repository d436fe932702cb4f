"""Equinox models of one example, mapped over the batch: all but arrays of real numbers is fixed."""

import dataclasses
from typing import Any

import equinox
import jax
import jax.numpy as jnp

from apd_jax.sites.adapters.fixed import Fixed, check_state

PyTree = Any


@dataclasses.dataclass(frozen=True)
class EquinoxApply:
    """A model combined from its parameters and the rest of it, and called on every example.

    Attributes:
      fixed: the rest of the model.
    """

    fixed: Fixed

    def __call__(self, params: PyTree, x: PyTree) -> PyTree:
        """The model's outputs [B, ...] for inputs [B, ...]."""
        return jax.vmap(equinox.combine(params, self.fixed.value))(x)

    @property
    def settings(self) -> dict[str, Any]:
        """None are needed: a model is called with its inputs alone."""
        return {}

    @property
    def state(self) -> PyTree:
        """The arrays that are no parameters, in order."""
        return list(map(jnp.asarray, filter(equinox.is_array, jax.tree.leaves(self.fixed.value))))

    def with_state(self, state: PyTree) -> "EquinoxApply":
        """The same model with other arrays in place of those that are no parameters."""
        check_state(self.state, state)
        leaves, tree = jax.tree.flatten(self.fixed.value)
        places = [i for i, leaf in enumerate(leaves) if equinox.is_array(leaf)]
        for place, array in zip(places, state, strict=True):
            leaves[place] = jnp.asarray(array)
        return EquinoxApply(Fixed(jax.tree.unflatten(tree, leaves)))


def from_equinox(model: Any) -> tuple[EquinoxApply, PyTree]:
    """`(apply_fn, params)` of an Equinox model of one example."""
    params, rest = equinox.partition(model, equinox.is_inexact_array)
    return EquinoxApply(Fixed(rest)), params


def restored(model: Any, settings: dict[str, Any]) -> tuple[EquinoxApply, PyTree]:
    """The function of a model that was saved, and parameters of the types that it keeps."""
    return from_equinox(model)
