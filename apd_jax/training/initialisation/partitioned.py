"""A start for components: the target's own weights, parted among groups of inputs.

Inputs that the weights treat alike make a group; the component of a group takes what the weights
read on it. So the components add up to the target from the first step, and each works on its group
as the target does. Training has to sharpen them, not to find them: where most units are silent
unless all of their weights are there, half of a mechanism gets no gradient, and components that
start at random stay mixtures.

Letters: B batch, N examples looked at, C components, m rank, d_in / d_out site widths.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from apd_jax.components import Components, Factors, num_components
from apd_jax.sites import Target
from apd_jax.training.initialisation.groups import find_groups

EXAMPLES = 1024
_RIDGE = 1e-4


def part_target(target: Target, x: jax.Array, components: Components) -> Components:
    """Give every component what the target's weights read on its group of inputs.

    `P_{c,l} = Π_{c,l} θ*_l`, `Π_{c,l} = (Σ_b t_b r_bᵀ r_b + ε)⁻¹ Σ_b w_{b,c} r_bᵀ r_b`, with r_b
    what site l reads on example b, w_{b,c} the example's weight in group c, and `t = Σ_c w_c`: the
    linear map that best gives r back on the group and 0 on the others.

    Args:
      target: the network.
      x: [B, ...] inputs, some thousands.
      components: of the shapes that are wanted.

    Returns:
      Components of these shapes, each site cut to rank m.

    Raises:
      UserError: a site that is not multiplied by rows of its own, such as a stack or a look-up.
    """
    found = find_groups(target, x, num_components(components), EXAMPLES)
    return {
        site: _part(found.rows[site], found.members, target.weights[site], factors.reads.shape[1])
        for site, factors in components.items()
    }


def _part(rows: jax.Array, groups: jax.Array, weight: jax.Array, rank: int) -> Factors:
    """The parts of one site's matrix, of rank at most m."""
    moments = jnp.einsum("bc,bi,bj->cij", groups, rows, rows)
    second = jnp.sum(moments, axis=0)
    width = second.shape[0]
    ridge = _RIDGE * jnp.trace(second) / width + 1e-30
    solve: Callable = jax.scipy.linalg.cho_solve
    factor = jax.scipy.linalg.cho_factor(second + ridge * jnp.eye(width))
    pieces = jax.vmap(lambda moment: solve(factor, moment) @ weight)(moments)
    return Factors.from_matrices(pieces, rank)
