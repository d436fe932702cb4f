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

from apd_jax import sites
from apd_jax.attribution import gradient_attributions
from apd_jax.components import Components, Factors
from apd_jax.errors import UserError
from apd_jax.forward import is_look_up
from apd_jax.sites import Target

EXAMPLES = 1024
_ROUNDS = 10
_RIDGE = 1e-4
# Examples between two groups tell little about either: they count for little.
SHARPNESS = 8


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
    rows = _rows(target, x)
    weights = target.weights
    activity = _activity(target, x)
    sizes = {site: jnp.linalg.norm(weights[site], axis=1) for site in rows}
    signatures = jnp.concatenate([rows[site] * sizes[site] for site in rows], axis=1)
    # The first active ones: x is in no order.
    order = (activity > 0) * jnp.arange(len(activity), 0, -1)
    examples = jax.lax.top_k(order, min(EXAMPLES, len(activity)))[1]
    num_components = next(iter(components.values())).reads.shape[0]
    groups = group_lines(signatures[examples], activity[examples], num_components)
    return {
        site: _part(rows[site][examples], groups, weights[site], factors.reads.shape[1])
        for site, factors in components.items()
    }


def _rows(target: Target, x: jax.Array) -> dict[str, jax.Array]:
    """What every site reads at its first use that is not transposed, [B, d_in]."""
    _, records = sites.run(target, x, sites.as_is)
    rows = {}
    for record in records.values():
        place = record.placement
        whole = not place.transposed and not place.stacked and place.rows is None
        table = record.x.ndim == 2 and not is_look_up(record.x)
        if whole and table and record.name not in rows:
            rows[record.name] = record.x
    missing = [site for site in target.sites if site not in rows]
    if missing:
        raise UserError(
            f"start 'parted' knows products x @ w of rows x [B, d_in] alone, which {missing} are "
            "not; use start 'random'"
        )
    return rows


def _activity(target: Target, x: jax.Array) -> jax.Array:
    """How much the weights matter on each example, [B] in [0, 1): 0 where they don't."""
    whole = {
        site: Factors(jnp.eye(weight.shape[0])[None], weight[None])
        for site, weight in target.weights.items()
    }
    scores = gradient_attributions(target, whole, x)[:, 0]
    return scores / (scores + jnp.mean(scores) + 1e-30)


def group_lines(signatures: jax.Array, weights: jax.Array, count: int) -> jax.Array:
    """Part examples into groups by the lines that their signatures lie on.

    An example and its negative are alike. The first members stand each in a crowd, far from those
    before it; then k-means with the cosines of `s sᵀ`.

    Args:
      signatures: [N, d].
      weights: [N], not negative.
      count: C.

    Returns:
      [N, C], weights of the examples in their groups, less where two groups are near.
    """
    norms = jnp.linalg.norm(signatures, axis=1, keepdims=True)
    directions = signatures / jnp.where(norms > 0, norms, 1)
    products = jnp.square(directions @ directions.T)

    crowd = weights * (products**SHARPNESS @ weights)

    def choose(nearest, _):
        following = jnp.argmax(crowd * (1 - nearest))
        return jnp.maximum(nearest, products[following]), following

    start = jnp.zeros_like(weights)
    _, chosen = jax.lax.scan(choose, start, length=count)

    def assign(_, likeness):
        members = weights[:, None] * jax.nn.one_hot(likeness.argmax(axis=1), count)
        to_all = products @ members
        within = jnp.sum(members * to_all, axis=0)
        return to_all / jnp.sqrt(jnp.maximum(within, 1e-30))

    likeness = jax.lax.fori_loop(0, _ROUNDS, assign, products[:, chosen])
    ordered = jnp.sort(likeness, axis=1)
    best, second = ordered[:, -1], ordered[:, -2] if count > 1 else jnp.zeros_like(weights)
    clear = (best - second) / jnp.maximum(best + second, 1e-30)
    own = jax.nn.one_hot(likeness.argmax(axis=1), count)
    return own * (weights * clear**SHARPNESS)[:, None]


def _part(rows: jax.Array, groups: jax.Array, weight: jax.Array, rank: int) -> Factors:
    """The parts of one site's matrix, of rank at most m."""
    moments = jnp.einsum("bc,bi,bj->cij", groups, rows, rows)
    second = jnp.sum(moments, axis=0)
    width = second.shape[0]
    ridge = _RIDGE * jnp.trace(second) / width + 1e-30
    solve: Callable = jax.scipy.linalg.cho_solve
    factor = jax.scipy.linalg.cho_factor(second + ridge * jnp.eye(width))
    parts = jax.vmap(lambda moment: solve(factor, moment) @ weight)(moments)
    u, s, vt = jnp.linalg.svd(parts, full_matrices=False)
    kept = min(rank, s.shape[1])
    root = jnp.sqrt(s[:, :kept, None])
    pad = ((0, 0), (0, rank - kept), (0, 0))
    return Factors(
        jnp.pad(root * jnp.swapaxes(u[:, :, :kept], 1, 2), pad), jnp.pad(root * vt[:, :kept], pad)
    )
