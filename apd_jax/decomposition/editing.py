"""A network's parameters with its components removed or scaled.

Letters: C components, s_c scale of component c.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from apd_jax.components import Components, num_components
from apd_jax.config_fields.values import KINDS, number
from apd_jax.errors import UserError
from apd_jax.masked import forward
from apd_jax.programs.compiled import jit_with_network
from apd_jax.sites import PyTree, Target


def check_component(components: Components, component: Any) -> int:
    """A component's number as a Python int; raises UserError if no component has it."""
    total, found = num_components(components), number(component)
    if type(found) is not int or not 0 <= found < total:
        raise UserError(f"component must be a whole number in [0, {total}), got {component!r}")
    return found


def mask_without(components: Components, component: int | Sequence[int]) -> np.ndarray:
    """A mask of all components but one or some, bool [C].

    Raises:
      UserError: no such component.
    """
    try:
        given = np.ravel(np.asarray(component)).tolist()
    except ValueError:  # lists of several lengths
        given = [component]
    chosen = [check_component(components, one) for one in given]
    return ~np.isin(np.arange(num_components(components)), chosen)


def edited(
    target: Target, components: Components, scales: Mapping[int, float], remainder: bool = False
) -> PyTree:
    """The parameters with `Σ_c s_c P_c` at every site; see `Decomposition.edited`.

    With the remainder, `Σ_c s_c P_c + Δ`.
    """
    if not isinstance(scales, Mapping):
        raise UserError(
            "scales must be a mapping {component: scale}, such as {3: 0.0} for component 3 taken "
            f"out, got a {type(scales).__name__}"
        )
    amounts = np.ones(num_components(components), np.float32)
    for component, scale in scales.items():
        component, scale = check_component(components, component), number(scale)
        if not (isinstance(scale, bool) or KINDS[float](scale)):
            raise UserError(
                f"component {component} must be scaled by a finite number, got {scale!r:.200}"
            )
        amounts[component] = float(scale)
    if not remainder:
        return _scaled(target, components, amounts)
    return _changed(target, components, amounts)


def to_torch(
    target: Target, components: Components, scales: Mapping[int, float], remainder: bool
) -> dict[str, Any]:
    """The decomposed parameters as torch tensors; see `Decomposition.to_torch`.

    Raises:
      UserError: the network is no torch module.
    """
    if not hasattr(target.apply_fn, "to_tensors"):
        raise UserError(
            "to_torch needs a decomposition of a torch module, Target.from_torch; edited() gives "
            "the parameters of any network"
        )
    params = edited(target, components, scales, remainder)
    names = dict.fromkeys(site.path for site in target.sites.values())
    return target.apply_fn.to_tensors({name: params[name] for name in names})


@jit_with_network
@jax.default_matmul_precision("highest")
def _changed(target: Target, components: Components, amounts: jax.Array) -> PyTree:
    """`θ* + Σ_c (s_c − 1) P_c`, which is `edited` with the remainder."""
    added = {
        name: w + components[name].scaled(amounts - 1).sum() for name, w in target.weights.items()
    }
    return target.with_weights(added).params


@jit_with_network
@jax.default_matmul_precision("highest")
def _scaled(target: Target, components: Components, amounts: jax.Array) -> PyTree:
    """`edited` for scales [C]."""
    scaled = {name: factors.scaled(amounts) for name, factors in components.items()}
    return forward.full_model(target, scaled).params
