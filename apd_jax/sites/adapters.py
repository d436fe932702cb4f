"""Thin adapters: a model of a library as a pure function and its parameters.

They only split a model in two; sites are found in the traced program all the same.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from apd_jax.errors import UserError

PyTree = Any


class _Fixed:
    """What a network needs besides its parameters; equal only to itself, so that jit reuses it."""

    def __init__(self, value: Any):
        self.value = value


@dataclasses.dataclass(frozen=True)
class _LinenApply:
    """`module.apply` on parameters alone; equal for equal modules, so that jit reuses it."""

    module: Any
    method: Any
    fixed: _Fixed | None

    def __call__(self, params: PyTree, x: PyTree) -> PyTree:
        collections, keywords = self.fixed.value if self.fixed else ({}, {})
        variables = {"params": params, **collections}
        module = self.module.value if isinstance(self.module, _Fixed) else self.module
        return module.apply(variables, x, method=self.method, **keywords)


def from_linen(module: nn.Module, variables: Mapping[str, PyTree], method: Any, keywords: dict):
    """`(apply_fn, params)` of a Flax Linen module; other collections and keywords are fixed.

    Raises:
      UserError: variables without a collection `params`.
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        found = sorted(variables) if isinstance(variables, Mapping) else type(variables).__name__
        raise UserError(
            f"variables must hold the collection 'params', as module.init returns it; got {found}"
        )
    others = {name: value for name, value in variables.items() if name != "params"}
    fixed = _Fixed((others, keywords)) if others or keywords else None
    return _LinenApply(_hashable(module), method, fixed), variables["params"]


def _hashable(module: nn.Module) -> Any:
    """The module, or it alone where it holds lists, as `nn.Sequential` may."""
    try:
        hash(module)
    except TypeError:
        return _Fixed(module)
    return module


@dataclasses.dataclass(frozen=True)
class _Recombined:
    """A model put together from its parameters and the rest of it, and called."""

    rest: _Fixed
    combine: Any

    def __call__(self, params: PyTree, x: PyTree) -> PyTree:
        return self.combine(params, self.rest.value)(x)


def from_nnx(model: Any):
    """`(apply_fn, params)` of a Flax NNX model; all but its `nnx.Param`s is fixed."""
    from flax import nnx  # takes a quarter of the time to import this package

    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def combine(params, rest):
        graph, state = rest
        # New variables: the model's own can't be changed, as counts of draws are, in another trace.
        return nnx.merge(graph, *jax.tree.map(lambda leaf: leaf, (params, state)))

    return _Recombined(_Fixed((graph, rest)), combine), params


def from_equinox(model: Any):
    """`(apply_fn, params)` of an Equinox model of one example, mapped over the batch.

    Raises:
      ImportError: Equinox is not installed.
    """
    import equinox  # optional: only who has such a model needs it

    params, rest = equinox.partition(model, equinox.is_inexact_array)

    def combine(params, rest):
        return jax.vmap(equinox.combine(params, rest))

    return _Recombined(_Fixed(rest), combine), params
