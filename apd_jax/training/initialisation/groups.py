"""Groups of inputs that the target's weights treat alike, for initial components.

Letters: B batch, N examples in groups, C components, d_in site width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from apd_jax import blocks, sites, validity
from apd_jax.attribution import gradient_attributions
from apd_jax.components import Components, Factors, num_components
from apd_jax.errors import UserError
from apd_jax.masked.forward import is_look_up
from apd_jax.sites import Patches, Target

_ROUNDS = 10
# Examples between two groups say little about either. Their weights are reduced by this power of
# how clearly they belong to one.
SHARPNESS = 8


class Groups(NamedTuple):
    """Examples in groups, one group for each component.

    Attributes:
      rows: `{site: [N, d_in]}`, what every site reads on the examples.
      members: [N, C], weights of the examples in their groups.
      used: [C] bool, whether the group is used; see `least` of `group_lines`.
    """

    rows: dict[str, jax.Array]
    members: jax.Array
    used: jax.Array


def start_from_groups(
    pieces: Callable[[jax.Array, Groups, jax.Array, int], Factors],
    examples: int,
    least: float = 0.0,
) -> Callable[..., Components]:
    """Make a start of a function that cuts one site's matrix into a piece for each group.

    Args:
      pieces: function `(rows [N, d_in], groups, weight [d_in, d_out], m) -> Factors`.
      examples: upper limit of N.
      least: see `group_lines`.

    Returns:
      The start, `(objective, target, x, components, block_size) -> components`: x holds some
      thousands of inputs; of the components only the shapes are used. It raises UserError for a
      site that is not multiplied by rows of its own, such as a stack or a look-up.
    """

    def start(objective, target, x, components, block_size=None) -> Components:
        count, valid = num_components(components), objective.valid
        groups = _find_groups(target, x, count, examples, least, valid, block_size)
        return {
            site: pieces(groups.rows[site], groups, target.weights[site], factors.reads.shape[1])
            for site, factors in components.items()
        }

    return start


def _find_groups(
    target: Target,
    x: jax.Array,
    count: int,
    examples: int,
    least: float,
    valid: Callable | None,
    block_size: int | None,
) -> Groups:
    """Group examples by what all sites read on them, each entry scaled by the weights it meets."""
    activity = _activity(target, x, valid, block_size)
    # The first active ones are a fair sample, since x is in random order.
    order = (activity > 0) * jnp.arange(len(activity), 0, -1)
    seen = jax.lax.top_k(order, min(examples, len(activity)))[1]
    some = jax.tree.map(lambda leaf: leaf[seen], x)
    rows = blocks.joined(blocks.over_blocks(lambda part: _rows(target, part), some, block_size))
    seen = seen[: len(next(iter(rows.values())))]
    # An input that meets small weights hardly matters, however large it is.
    sizes = {site: jnp.linalg.norm(target.weights[site], axis=1) for site in rows}
    signatures = jnp.concatenate([rows[site] * sizes[site] for site in rows], axis=1)
    members, used = group_lines(signatures, activity[seen], count, least)
    return Groups(rows, members, used)


def group_lines(
    signatures: jax.Array, weights: jax.Array, count: int, least: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Group examples by the lines on which their signatures lie.

    An example and its negative belong together: k-means with the cosines of `s sᵀ`, whose inner
    products are squared cosines of the signatures. Each group starts from an example in a dense
    region that is far from the groups before it. Random first members would often leave a rare
    group without one, and k-means does not move a group to a place where it has no members.

    Args:
      signatures: [N, d].
      weights: [N], how much each example counts, not negative.
      count: C.
      least: a group is used if the density at its first member, less what the groups before it
        explain, is at least this share of that of the first group. Sparser groups are mostly
        mixtures of others.

    Returns:
      [N, C], weights of the examples in their groups, reduced between two groups; and [C] bool, the
      groups that are used.
    """
    norms = jnp.linalg.norm(signatures, axis=1, keepdims=True)
    directions = signatures / jnp.where(norms > 0, norms, 1)
    products = jnp.square(directions @ directions.T)

    # The power makes the kernel local: only examples on nearly the same line add to the density.
    density = weights * (products**SHARPNESS @ weights)

    def choose(nearest, _):
        value = density * (1 - nearest)
        following = jnp.argmax(value)
        return jnp.maximum(nearest, products[following]), (following, value[following])

    _, (chosen, values) = jax.lax.scan(choose, jnp.zeros_like(weights), length=count)
    used = values >= least * values[0]

    def assign(_, similarity):
        members = weights[:, None] * jax.nn.one_hot(similarity.argmax(axis=1), count)
        to_all = products @ members
        within = jnp.sum(members * to_all, axis=0)
        # No example belongs to an unused group: a cosine is at least 0.
        return jnp.where(used, to_all / jnp.sqrt(jnp.maximum(within, 1e-30)), -1)

    similarity = jax.lax.fori_loop(0, _ROUNDS, assign, jnp.where(used, products[:, chosen], -1))
    ordered = jnp.sort(similarity, axis=1)
    best = ordered[:, -1]
    second = jnp.maximum(ordered[:, -2], 0) if count > 1 else jnp.zeros_like(weights)
    clear = (best - second) / jnp.maximum(best + second, 1e-30)
    own = jax.nn.one_hot(similarity.argmax(axis=1), count)
    return own * (weights * clear**SHARPNESS)[:, None], used


def _rows(target: Target, x: jax.Array) -> dict[str, jax.Array]:
    """What every site reads at its first use that is not transposed, [B, d_in]."""
    _, records = sites.run(target, x, sites.as_is)
    rows: dict[str, jax.Array] = {}
    for record in records.values():
        place = record.placement
        whole = not place.transposed and not place.stacked and place.rows is None
        read = record.x
        if isinstance(read, Patches) or read.ndim != 2 or is_look_up(read):
            continue
        if whole and record.name not in rows:
            rows[record.name] = read
    missing = [site for site in target.sites if site not in rows]
    if missing:
        raise UserError(
            "initial components from the weights need sites that are products x @ w of rows "
            f"x [B, d_in], which {missing} are not; use start 'random'"
        )
    return rows


def _activity(
    target: Target, x: jax.Array, valid: Callable | None, block_size: int | None
) -> jax.Array:
    """How much the weights matter on each example, [B] in [0, 1); 0 where they don't.

    This is the attribution of the whole network as a single component, squashed so that a few
    examples with large outputs do not dominate.
    """
    whole = {
        site: Factors(jnp.eye(weight.shape[0])[None], weight[None])
        for site, weight in target.weights.items()
    }

    def of_part(part):
        counted = validity.of_batch(valid, part)
        scores = gradient_attributions(target, whole, part, valid=counted)[:, 0]
        if counted is None:
            return scores, jnp.ones(scores.shape, bool)
        return scores, validity.of_rows(counted, scores.shape)

    scores, counted = blocks.joined(blocks.over_blocks(of_part, x, block_size))
    typical = validity.mean(scores, None if valid is None else counted)
    return scores / (scores + typical + 1e-30)
