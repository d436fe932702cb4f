"""Initial components from the target's own weights, partitioned by input cluster.

Inputs that the weights treat alike form a group; the component of a group takes what the weights
read on it. The components therefore add up to the target from the first step, and each computes on
its group what the target does. Training only has to sharpen them. From a random initialisation it
has to find them, which fails where most units are silent unless all of their weights are present:
half of a mechanism then gets no gradient, and components stay mixtures.

Letters: B batch, N examples in groups, C components, m rank, d_in / d_out site widths.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from apd_jax.components import Components, Factors, num_components
from apd_jax.sites import Target
from apd_jax.training.initialisation.groups import find_groups
from apd_jax.training.refine import shares
from apd_jax.training.refine.site_rows import second_moments

EXAMPLES = 1024
# Smaller than that of the moves: groups here are clean, and the components should add up exactly.
_RIDGE = 1e-4


def partition_target(
    target: Target,
    x: jax.Array,
    components: Components,
    *,
    valid: Callable | None = None,
    block_size: int | None = None,
) -> Components:
    """Give every component what the target's weights read on its group of inputs.

    `P_{c,l} = Π_{c,l} θ*_l`, with the map `Π_{c,l}` of `shares.partition` for group c among all
    groups, on what site l reads.

    Args:
      target: the network.
      x: [B, ...] inputs, some thousands.
      components: components of the shapes to return; their values are not used.
      valid: function of the inputs that says which of them count; None for all.
      block_size: number of inputs that are looked at together; None for all.

    Returns:
      Components, each site truncated to rank m.

    Raises:
      UserError: a site that is not multiplied by rows of its own, such as a stack or a look-up.
    """
    found = find_groups(target, x, num_components(components), EXAMPLES, 0.0, valid, block_size)
    return {
        site: _pieces(found.rows[site], found.members, target.weights[site], factors.reads.shape[1])
        for site, factors in components.items()
    }


def _pieces(rows: jax.Array, groups: jax.Array, weight: jax.Array, rank: int) -> Factors:
    """The pieces of one site's matrix, one for each group, of rank at most m."""

    def moment(weights):
        return second_moments(rows[:, None], weights, rows.shape[1])

    part = shares.partition(moment(jnp.sum(groups, axis=1)), _RIDGE)
    every_input = jnp.eye(weight.shape[0])
    pieces = jax.lax.map(lambda members: part(moment(members), every_input).T @ weight, groups.T)
    return Factors.from_matrices(pieces, rank)
