"""Initial components that each cover a group of inputs as the target does.

Where a site is narrower than the number of mechanisms, the directions that mechanisms read overlap:
an identity matrix of two hidden units serves five features, and no five matrices that add up to it
can each act as the identity on their own feature. Every component therefore takes all that the
target's weights read on its group. Spare components, which have no group and are active nowhere,
hold the difference to the target: the overlaps, with a negative sign.

Letters: B batch, N examples in groups, C components, m rank, d_in / d_out site widths.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from apd_jax.components import Components, Factors, num_components
from apd_jax.sites import Target
from apd_jax.training.initialisation.groups import find_groups

EXAMPLES = 2048
_RIDGE = 0.05
# On TMS the last feature's density is .6 of the first one's; that of the next candidate, a mixture
# of features, is below .05.
_LEAST = 0.2


def cover_target(
    target: Target,
    x: jax.Array,
    components: Components,
    *,
    valid: Callable | None = None,
    block_size: int | None = None,
) -> Components:
    """Give every component all that the target's weights read on its group of inputs.

    `P_{c,l} = (1 + ρ) (M_{c,l} + ρ λ I)⁻¹ M_{c,l} θ*_l`, `M_{c,l} = Σ_b w_{b,c} r_bᵀ r_b`, with r_b
    what site l reads on example b, w_{b,c} the example's weight in group c, λ the largest
    eigenvalue of M and ρ = 0.05: the projection onto the directions that the group reads most,
    which suppresses those that it reads by chance. Components without a group take the singular
    directions of the difference `θ*_l - Σ_c P_{c,l}` in turn, each as few as possible: a single
    component with the whole difference would point in the same directions as the others.

    Args:
      target: the network.
      x: [B, ...] inputs, some thousands.
      components: components of the shapes to return; their values are not used.
      valid: function of the inputs that says which of them count; None for all.
      block_size: number of inputs that are looked at together; None for all.

    Returns:
      Components, each site truncated to rank m. They add up to the target if the spare components
      have as many terms as the rank of every site's difference, which is at most its smaller width.

    Raises:
      UserError: a site that is not multiplied by rows of its own, such as a stack or a look-up.
    """
    found = find_groups(target, x, num_components(components), EXAMPLES, _LEAST, valid, block_size)
    covered = {}
    for site, factors in components.items():
        weight, rank = target.weights[site], factors.reads.shape[1]
        matrices = _whole(found.rows[site], found.members, weight)
        pieces = Factors.from_matrices(jnp.where(found.used[:, None, None], matrices, 0), rank)
        rest = _in_turn(weight - pieces.sum(), ~found.used, rank)
        covered[site] = jax.tree.map(jnp.add, pieces, rest)
    return covered


def _whole(rows: jax.Array, groups: jax.Array, weight: jax.Array) -> jax.Array:
    """What one site's matrix reads on each group, [C, d_in, d_out]."""
    moments = jnp.einsum("bc,bi,bj->cij", groups, rows, rows)

    def one(moment):
        ridge = _RIDGE * jnp.linalg.eigvalsh(moment)[-1] + 1e-30
        return jnp.linalg.solve(moment + ridge * jnp.eye(len(moment)), moment) @ weight

    return (1 + _RIDGE) * jax.vmap(one)(moments)


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
