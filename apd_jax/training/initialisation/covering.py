"""A start for components: each covers a group of inputs as the target does, free ones the rest.

Where a site is narrower than there are mechanisms, what these read overlaps: an identity of two
hidden units serves five features, and pieces of it that add up to it can't each be it on their own
feature. So every component takes the whole of what the target's weights read on its group, and
components that are left without a group hold the difference to the target: what overlaps, with the
sign turned. They are active nowhere.

Letters: B batch, N examples looked at, C components, m rank, d_in / d_out site widths.
"""

import jax
import jax.numpy as jnp

from apd_jax.components import Components, Factors, num_components
from apd_jax.sites import Target
from apd_jax.training.initialisation.groups import find_groups

EXAMPLES = 2048
_RIDGE = 0.05
# On TMS the last feature has .6 of the first one's crowd, the next thing less than .05.
_LEAST = 0.2


def cover_target(target: Target, x: jax.Array, components: Components) -> Components:
    """Give every component all that the target's weights read on its group of inputs.

    `P_{c,l} = (1 + ρ) (M_{c,l} + ρ λ I)⁻¹ M_{c,l} θ*_l`, `M_{c,l} = Σ_b w_{b,c} r_bᵀ r_b`, with r_b
    what site l reads on example b, w_{b,c} the example's weight in group c, λ the largest
    eigenvalue of M and ρ = 0.05: the projection on what the group reads most, and nearly nothing
    of what it reads by chance. Components without a group take the singular directions of the rest
    `θ*_l - Σ_c P_{c,l}` in turn, each as few as will do: a component that held all of the rest
    would point where the others point.

    Args:
      target: the network.
      x: [B, ...] inputs, some thousands.
      components: of the shapes that are wanted.

    Returns:
      Components of these shapes, each site cut to rank m. They add up to the target where the
      spare ones have terms enough for the rank of every site's rest, at most its narrower width.

    Raises:
      UserError: a site that is not multiplied by rows of its own, such as a stack or a look-up.
    """
    found = find_groups(target, x, num_components(components), EXAMPLES, _LEAST)
    covered = {}
    for site, factors in components.items():
        weight, rank = target.weights[site], factors.reads.shape[1]
        pieces = _whole(found.rows[site], found.members, weight)
        pieces = Factors.from_matrices(jnp.where(found.used[:, None, None], pieces, 0), rank)
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
    """A matrix as terms of free components, which take its singular directions in turn."""
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    place = (jnp.cumsum(free) - 1)[:, None] + jnp.sum(free) * jnp.arange(rank)
    held = free[:, None] & ((place < len(s)) | (jnp.arange(rank) == 0))
    direction = jnp.where(held, place % len(s), 0)
    holders = jnp.zeros(len(s)).at[direction].add(held)
    root = jnp.where(held, jnp.sqrt(s[direction] / jnp.maximum(holders[direction], 1)), 0)
    return Factors(root[..., None] * u.T[direction], root[..., None] * vt[direction])
