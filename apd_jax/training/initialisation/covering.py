"""Initial components that each cover a group of inputs as the target does.

Where a site is narrower than the number of mechanisms, the directions that mechanisms read overlap:
an identity matrix of two hidden units serves five features, and no five matrices that add up to it
can each act as the identity on their own feature. Every component therefore takes all that the
target's weights read on its group. Spare components, which have no group and are active nowhere,
hold the difference to the target: the overlaps, with a negative sign.

Letters: R rows in groups, n rows of the site for each of them, C components, m rank, d_in / d_out
site widths.
"""

import jax
import jax.numpy as jnp

from apd_jax.components import Factors
from apd_jax.programs import linalg
from apd_jax.training.initialisation.groups import RowGroups

_RIDGE = 0.05
# On TMS the last feature's density is .6 of the first one's; that of the next candidate, a mixture
# of features, is below .05.
LEAST = 0.2


def pieces(reads: jax.Array, groups: RowGroups, weight: jax.Array, rank: int) -> Factors:
    """Give every component all that the target's weights read on its group of inputs.

    `P_{c,l} = (1 + ρ) (M_{c,l} + ρ λ I)⁻¹ M_{c,l} θ*_l`, `M_{c,l} = Σ_b w_{b,c} r_bᵀ r_b`, with r_b
    what site l reads on row b, w_{b,c} the row's weight in group c, λ the largest
    eigenvalue of M and ρ = 0.05: the projection onto the directions that the group reads most,
    which suppresses those that it reads by chance. Components without a group take the singular
    directions of the difference `θ*_l - Σ_c P_{c,l}` in turn, each as few as possible: a single
    component with the whole difference would point in the same directions as the others.

    Args:
      reads: [R, n, d_in], what the site reads on the rows; indices [R, n] of a look-up.
      groups, weight, rank: the groups of the rows; the site's matrix [d_in, d_out]; m.

    Returns:
      Factors of C components, truncated to rank m. They add up to the target if the spare
      components have as many terms as the rank of the difference, which is at most the smaller
      width.
    """
    matrices = _whole(reads, groups, weight)
    covered = Factors.from_matrices(jnp.where(groups.used[:, None, None], matrices, 0), rank)
    rest = _in_turn(weight - covered.sum(), ~groups.used, rank)
    return jax.tree.map(jnp.add, covered, rest)


def _whole(reads: jax.Array, groups: RowGroups, weight: jax.Array) -> jax.Array:
    """What one site's matrix reads on each group, [C, d_in, d_out]."""

    def one(group):
        moment = groups.moment(reads, len(weight), group)
        if moment.ndim == 1:  # the diagonal, of a look-up
            share = moment / (moment + _RIDGE * jnp.max(moment) + 1e-30)
            return share[:, None] * weight
        ridge = _RIDGE * linalg.eigh(moment)[0][-1] + 1e-30
        return linalg.solve(moment + ridge * jnp.eye(len(moment)), moment) @ weight

    return (1 + _RIDGE) * jax.lax.map(one, jnp.arange(len(groups.used)))


def _in_turn(matrix: jax.Array, free: jax.Array, rank: int) -> Factors:
    """Write a matrix as terms of free components, which take its singular directions in turn.

    With more free components than directions some directions have several holders, each of an
    equal piece; with fewer, a component takes several directions.
    """
    (reads,), (writes,) = Factors.from_matrices(matrix[None])
    count = len(reads)
    # Free component i takes directions i, i + F, i + 2F, ... of F free ones: the largest singular
    # values go to different components.
    place = (jnp.cumsum(free) - 1)[:, None] + jnp.sum(free) * jnp.arange(rank)
    held = free[:, None] & ((place < count) | (jnp.arange(rank) == 0))
    direction = jnp.where(held, place % count, 0)
    holders = jnp.zeros(count).at[direction].add(held)
    share = jnp.where(held, 1 / jnp.maximum(holders[direction], 1), 0)
    root = jnp.sqrt(share)[..., None]
    return Factors(root * reads[direction], root * writes[direction])
