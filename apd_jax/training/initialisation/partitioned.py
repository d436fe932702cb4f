"""Initial components from the target's own weights, partitioned by input cluster.

Inputs that the weights treat alike form a group; the component of a group takes what the weights
read on it. The components therefore add up to the target from the first step, and each computes on
its group what the target does. Training only has to sharpen them. From a random initialisation it
has to find them, which fails where most units are silent unless all of their weights are present:
half of a mechanism then gets no gradient, and components stay mixtures.

Letters: B batch, N examples in groups, C components, m rank, d_in / d_out site widths.
"""

import jax
import jax.numpy as jnp

from apd_jax.components import Factors
from apd_jax.training.initialisation.groups import Groups
from apd_jax.training.refine import shares
from apd_jax.training.refine.site_rows import second_moments

# Smaller than that of the moves: groups here are clean, and the components should add up exactly.
_RIDGE = 1e-4


def pieces(rows: jax.Array, groups: Groups, weight: jax.Array, rank: int) -> Factors:
    """Give every component what the target's weights read on its group of inputs.

    `P_{c,l} = Π_{c,l} θ*_l`, with the map `Π_{c,l}` of `shares.partition` for group c among all
    groups, on what site l reads.

    Args:
      rows: [N, d_in], what the site reads on the examples.
      groups: the groups of the examples.
      weight: [d_in, d_out], the site's matrix.
      rank: m.

    Returns:
      Factors of C components, truncated to rank m.
    """

    def moment(weights):
        return second_moments(rows[:, None], weights, rows.shape[1])

    part = shares.partition(moment(jnp.sum(groups.members, axis=1)), _RIDGE)
    every_input = jnp.eye(weight.shape[0])

    def one(members):
        return part(moment(members), every_input).T @ weight

    return Factors.from_matrices(jax.lax.map(one, groups.members.T), rank)
