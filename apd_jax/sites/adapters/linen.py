"""Flax Linen modules: other collections than the parameters, the method and keywords are fixed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax import core

from apd_jax.errors import UserError
from apd_jax.sites.adapters.fixed import Fixed, plain_keywords, refuse_unsaved, saved_keywords

PyTree = Any
_CONSTRUCTOR = "a Target, Target.from_flax(module, variables, ...), that has it"


@dataclasses.dataclass(frozen=True)
class LinenApply:
    """`module.apply` on parameters alone; equal for equal modules, so that jit reuses it."""

    module: Any
    method: Any
    fixed: Fixed | None

    def __call__(self, params: PyTree, x: PyTree) -> PyTree:
        """The module's outputs for inputs x."""
        collections, keywords = self._parts
        variables = {"params": params, **collections}
        module = self.module.value if isinstance(self.module, Fixed) else self.module
        return module.apply(variables, x, method=self.method, **keywords)

    @property
    def _parts(self) -> tuple[dict, dict]:
        return self.fixed.value if self.fixed else ({}, {})

    @property
    def settings(self) -> dict[str, Any]:
        """The method and the keywords."""
        name = getattr(self.method, "__name__", self.method)
        return {"method": name, "keywords": plain_keywords(self._parts[1])}

    @property
    def state(self) -> PyTree:
        """The collections besides the parameters."""
        return core.unfreeze(core.freeze(self._parts[0]))

    def with_state(self, state: PyTree) -> "LinenApply":
        """The same module with other collections."""
        keywords = self._parts[1]
        fixed = Fixed((state, keywords)) if state or keywords else None
        return dataclasses.replace(self, fixed=fixed)


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
    variables = nn.meta.unbox(core.unfreeze(dict(variables)))  # whose classes are not saved
    others = {name: value for name, value in variables.items() if name != "params"}
    fixed = Fixed((others, keywords)) if others or keywords else None
    return LinenApply(_hashable(module), method, fixed), variables["params"]


def restored(module: nn.Module, settings: dict[str, Any]) -> tuple[LinenApply, None]:
    """The function of a module that was saved with these settings, without its collections.

    Raises:
      UserError: the module has no such method; a keyword could not be saved.
    """
    method = settings.get("method")
    if method is not None and not hasattr(module, method):
        refuse_unsaved(f"the method {method!r}", {"not saved": "function"}, _CONSTRUCTOR)
    keywords = saved_keywords(settings.get("keywords", {}), _CONSTRUCTOR)
    fixed = Fixed(({}, keywords)) if keywords else None
    return LinenApply(_hashable(module), method, fixed), None


def _hashable(module: nn.Module) -> Any:
    """The module, or it alone where it holds lists, as `nn.Sequential` may."""
    try:
        hash(module)
    except TypeError:
        return Fixed(module)
    return module
