"""A network's parameters with its components removed or scaled.

Letters: C components, s_c scale of component c.
"""

from collections.abc import Mapping

import jax
import numpy as np

from apd_jax.compiled import jit_with_network
from apd_jax.components import Components, Factors, num_components
from apd_jax.errors import UserError
from apd_jax.masked import forward
from apd_jax.sites import PyTree, Target


def check_component(components: Components, component: int) -> None:
    """Raise UserError for a number that no component has."""
    total = num_components(components)
    if not isinstance(component, int | np.integer) or not 0 <= component < total:
        raise UserError(f"component must be a whole number in [0, {total}), got {component!r}")


def edited(target: Target, components: Components, scales: Mapping[int, float]) -> PyTree:
    """Return the parameters with `Σ_c s_c P_c` at every site; see `Decomposition.edited`."""
    amounts = np.ones(num_components(components), np.float32)
    for component, scale in scales.items():
        check_component(components, component)
        if not np.isscalar(scale) or not np.isreal(scale) or not np.isfinite(scale):
            raise UserError(f"component {component} must be scaled by a number, got {scale!r}")
        amounts[component] = scale
    return _scaled(target, components, amounts)


@jit_with_network
@jax.default_matmul_precision("highest")
def _scaled(target: Target, components: Components, amounts: jax.Array) -> PyTree:
    """`edited` for scales [C]."""
    scaled = {
        name: Factors(f.reads * amounts.reshape(-1, *(1,) * (f.reads.ndim - 1)), f.writes)
        for name, f in components.items()
    }
    return forward.summed(target, scaled).params
