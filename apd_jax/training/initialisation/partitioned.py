"""Initial components from the target's own weights, partitioned by input cluster.

Inputs that the weights treat alike form a group; the component of a group takes what the weights
read on it. The components therefore add up to the target from the first step, and each computes on
its group what the target does. Training only has to sharpen them. From a random initialisation it
has to find them, which fails where most units are silent unless all of their weights are present:
half of a mechanism then gets no gradient, and components stay mixtures.

Letters: R rows in groups, n rows of the site for each of them, C components, m rank, d_in / d_out
site widths.
"""

import jax
import jax.numpy as jnp

from apd_jax.components import Factors
from apd_jax.masked.forward import is_look_up
from apd_jax.training.initialisation.groups import RowGroups
from apd_jax.training.refine import shares

# Smaller than that of the moves: groups here are clean, and the components should add up exactly.
_RIDGE = 1e-4


def pieces(reads: jax.Array, groups: RowGroups, weight: jax.Array, rank: int) -> Factors:
    """Give every component what the target's weights read on its group of inputs.

    `P_{c,l} = Π_{c,l} θ*_l`, with the map `Π_{c,l}` of `shares.partition` for group c among all
    groups, on what site l reads.

    Args:
      reads: [R, n, d_in], what the site reads on the rows; indices [R, n] of a look-up.
      groups, weight, rank: the groups of the rows; the site's matrix [d_in, d_out]; m.

    Returns:
      Factors of C components, truncated to rank m.
    """
    width = len(weight)
    # Entries of a look-up are divided one by one: none can be amplified.
    part = shares.partition(groups.whole(reads, width), 0.0 if is_look_up(reads) else _RIDGE)

    def one(group):
        # `θ*ᵀ Πᵀ`, from the side that has no matrix of d_in x d_in for a long table.
        matrix = part(groups.moment(reads, width, group), weight.T).T
        return Factors.from_matrices(matrix, rank)

    return jax.lax.map(one, jnp.arange(len(groups.used)))
