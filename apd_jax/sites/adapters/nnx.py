"""Flax NNX models: all but the `nnx.Param`s is fixed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from apd_jax.sites.adapters.fixed import Fixed, check_state

PyTree = Any


@dataclasses.dataclass(frozen=True)
class NnxApply:
    """A model merged from its parameters and the rest of it, and called.

    Attributes:
      fixed: the graph and the rest of the state.
    """

    fixed: Fixed

    def __call__(self, params: PyTree, x: PyTree) -> PyTree:
        """The model's outputs for inputs x."""
        graph, rest = self.fixed.value
        # New variables: the model's own can't be changed, as counts of draws are, in another trace.
        return nnx.merge(graph, *jax.tree.map(lambda leaf: leaf, (params, rest)))(x)

    @property
    def settings(self) -> dict[str, Any]:
        """None are needed: a model is called with its inputs alone."""
        return {}

    @property
    def state(self) -> PyTree:
        """The arrays that are no parameters, in order; of a random key, its numbers."""
        return [_numbers(leaf) for leaf in jax.tree.leaves(self.fixed.value[1])]

    def with_state(self, state: PyTree) -> "NnxApply":
        """The same model with other arrays in place of those that are no parameters."""
        graph, rest = self.fixed.value
        check_state(self.state, state)
        leaves, tree = jax.tree.flatten(rest)
        new = [_like(old, array) for old, array in zip(leaves, state, strict=True)]
        return NnxApply(Fixed((graph, jax.tree.unflatten(tree, new))))


def from_nnx(model: Any) -> tuple[NnxApply, PyTree]:
    """`(apply_fn, params)` of a Flax NNX model; the model itself is never changed."""
    parts: Any = nnx.split(model, nnx.Param, ...)
    graph, params, rest = parts
    return NnxApply(Fixed((graph, rest))), params


def restored(model: Any, settings: dict[str, Any]) -> tuple[NnxApply, PyTree]:
    """The function of a model that was saved, and parameters of the types that it keeps."""
    return from_nnx(model)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _numbers(leaf: Any) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)


def _like(old: Any, array: jax.Array) -> jax.Array:
    if _is_key(old):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(old))
    return jnp.asarray(array)
