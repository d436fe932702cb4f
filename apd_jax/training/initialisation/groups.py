"""Groups of inputs that the target's weights treat alike, for initial components.

Letters: N examples, T positions, R rows in groups (examples, or positions where components are
chosen for these), C components, G blocks of a stacked site, n rows of a site for each of R, d_in
site width.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from apd_jax import blocks, randomness, sites, validity
from apd_jax.attribution import gradient_attributions
from apd_jax.components import Components, Factors, num_components
from apd_jax.masked.forward import is_look_up
from apd_jax.objective.objective import Objective
from apd_jax.sites import PyTree, Records, Target
from apd_jax.training.refine import site_rows

_ROUNDS = 10
# Rows between two groups say little about either. Their weights are reduced by this power of how
# clearly they belong to one.
SHARPNESS = 8
_MOST_BYTES = 512 << 20  # of what all sites read on the rows


class RowGroups(NamedTuple):
    """Rows in groups, one group for each component.

    Attributes:
      order: int [R'], the rows in groups, group by group.
      bounds: int [C + 1], where each group begins in `order`, and the end of the last.
      weights: [R], how much each row counts in its group.
      used: [C] bool, whether the group is used; see `least` of `group_lines`.
    """

    order: jax.Array
    bounds: jax.Array
    weights: jax.Array
    used: jax.Array

    def moment(self, reads: jax.Array, width: int, group: jax.Array) -> jax.Array:
        """`Σ_b w_b x_bᵀ x_b` over the rows of a group, [d_in, d_in]; the diagonal of a look-up.

        Args:
          reads: what a site reads on the rows, [R, n, d_in]; indices [R, n] of a look-up.
          width: d_in.
          group: number of the group.
        """
        begin, end = self.bounds[group], self.bounds[group + 1]
        count = len(self.order)
        some = min(count, max(8, count // len(self.used)))  # rows that are added at a time

        def add(i, total):
            place = begin + some * i + jnp.arange(some)
            rows = self.order[jnp.minimum(place, count - 1)]
            weights = jnp.where(place < end, self.weights[rows], 0)
            return total + site_rows.second_moments(reads[rows], weights, width)

        zeros = jnp.zeros((width,) if is_look_up(reads) else (width, width))
        return jax.lax.fori_loop(0, (end - begin + some - 1) // some, add, zeros)

    def whole(self, reads: jax.Array, width: int) -> jax.Array:
        """The same over the rows of all groups."""
        return site_rows.second_moments(reads, self.weights, width)


def start_from_groups(
    objective: Objective,
    target: Target,
    x: PyTree,
    components: Components,
    block_size: int | None = None,
    *,
    pieces: Callable[[jax.Array, RowGroups, jax.Array, int], Factors],
    examples: int,
    least: float = 0.0,
) -> Components:
    """Make components that each take the piece of every matrix that belongs to a group of rows.

    Every site is taken by its first use.

    Args:
      objective: what counts of the inputs, and whether positions are told apart.
      target: the network.
      x: [N, ...] some thousands of inputs.
      components: components of the shapes to return.
      block_size: number of inputs that are looked at together; None for all.
      pieces: cuts one matrix, `(reads, groups, weight [d_in, d_out], m) -> Factors`, reads as in
        `RowGroups.moment`.
      examples: upper limit of the number of rows.
      least: see `group_lines`.
    """
    x, rows, weights = _active_rows(objective, target, x, examples, block_size)
    uses = site_rows.first_uses(_records(objective, target, x))
    flipped = {name for name, use in uses.items() if use.placement.transposed}
    reads = _reads(objective, target, components, x, block_size)
    matrices = {
        site: jnp.swapaxes(weight, -1, -2) if site in flipped else weight
        for site, weight in target.weights.items()
    }
    signatures = [_signatures(reads[site][rows], matrices[site]) for site in reads]
    count = num_components(components)
    members, used = group_lines(jnp.concatenate(signatures, axis=1), weights, count, least)
    groups = _in_order(rows, members, used, len(next(iter(reads.values()))))

    def one(site: str) -> Factors:
        rank = components[site].reads.shape[-2]

        def of_block(read, matrix):
            return pieces(read, groups, matrix, rank)

        of_site = of_block
        if matrices[site].ndim == 3:
            of_site = jax.vmap(of_block, in_axes=(1, 0), out_axes=1)
        return of_site(reads[site], matrices[site])

    return site_rows.as_read({site: one(site) for site in components}, flipped)


def _active_rows(
    objective: Objective, target: Target, x: PyTree, most: int, block_size: int | None
) -> tuple[PyTree, jax.Array, jax.Array]:
    """Inputs, the numbers of the rows of these that are put in groups, and the rows' activity."""
    uses = site_rows.first_uses(_records(objective, target, x)).values()
    size = 4 * sum(math.prod(use.x.shape) for use in uses) // sites.batch_size(x)
    count = min(most, sites.batch_size(x), max(1, _MOST_BYTES // size))
    if objective.per_position:
        count = min(count, -(-most // math.prod(sites.position_shape(target, x))))
        x = jax.tree.map(lambda leaf: leaf[: blocks.covered(count, block_size)], x)
    activity = _activity(objective, target, x, block_size)
    # The first active ones are a fair sample, since x is in random order.
    order = (activity > 0) * jnp.arange(len(activity), 0, -1)
    if objective.per_position:
        rows = jax.lax.top_k(order, min(most, len(order)))[1]
        return x, rows, activity[rows]
    count = blocks.covered(min(count, len(order)), block_size)
    seen = jax.lax.top_k(order, count)[1]
    return jax.tree.map(lambda leaf: leaf[seen], x), jnp.arange(count), activity[seen]


def _records(objective: Objective, target: Target, x: PyTree) -> Records:
    """Shapes of what passes through every use of a site."""
    return jax.eval_shape(lambda inputs: objective.own_pass(target, inputs)[1], x)


def _reads(
    objective: Objective,
    target: Target,
    components: Components,
    x: PyTree,
    block_size: int | None,
) -> dict[str, jax.Array]:
    """`site_rows.table` of all sites, rows first: [R, (G,) n, d_in], or indices [R, n]."""

    def of_part(part):
        uses = site_rows.first_uses(objective.own_pass(target, part)[1])
        count = sites.batch_size(part)
        if objective.per_position:
            count *= math.prod(sites.position_shape(target, part))
        tables = {
            site: site_rows.table(uses[site], factors, count, objective.counted(part))
            for site, factors in components.items()
        }
        return {
            site: jnp.moveaxis(read, 1, 0) if read.ndim == 4 else read
            for site, read in tables.items()
        }

    return blocks.joined(blocks.over_blocks(of_part, x, block_size))


def _signatures(reads: jax.Array, weight: jax.Array) -> jax.Array:
    """What a site reads on each row, scaled by the weights that it meets, [R, (G·)d_in].

    An input that meets small weights hardly matters, however large it is. Several rows of a site
    count by their mean. Rows of a look-up in a long table are the entries that they look up.
    """
    sizes = jnp.linalg.norm(weight, axis=-1)
    if is_look_up(reads):
        reads = site_rows.entries(reads, weight, transposed=False)
        sizes = sizes if reads.shape[-1] == len(weight) else jnp.ones(reads.shape[-1])
    scaled = reads.mean(axis=-2) * sizes
    return scaled.reshape(len(scaled), -1)


def _in_order(rows: jax.Array, members: jax.Array, used: jax.Array, count: int) -> RowGroups:
    """The groups of some of R rows, from their members [R', C]."""
    group = members.argmax(axis=1)
    order = jnp.argsort(group)
    bounds = jnp.searchsorted(group[order], jnp.arange(members.shape[1] + 1))
    weights = jnp.zeros(count).at[rows].set(members.max(axis=1))
    return RowGroups(rows[order], bounds, weights, used)


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


def _activity(objective: Objective, target: Target, x: PyTree, block_size: int | None) -> jax.Array:
    """How much the weights matter on each row, [R] in [0, 1); 0 where they don't.

    This is the attribution of the whole network as a single component, squashed so that a few rows
    with large outputs do not dominate.
    """
    routes = objective.routes
    options: dict[str, Any] = {"per_position": objective.per_position}
    if routes.attribution_mode == "sketch":
        options |= {"mode": "sketch", "num_probes": routes.probes(training=False)}

    def of_part(part):
        counted = objective.counted(part)
        whole = {site: _whole(weight) for site, weight in target.weights.items()}
        key = randomness.root(0)
        scores = gradient_attributions(target, whole, part, valid=counted, key=key, **options)
        lead = scores.shape[:-1]
        here = jnp.ones(lead, bool) if counted is None else validity.of_rows(counted, lead)
        return scores.reshape(-1), here.reshape(-1)

    scores, counted = blocks.joined(blocks.over_blocks(of_part, x, block_size))
    typical = validity.mean(scores, None if objective.valid is None else counted)
    return scores / (scores + typical + 1e-30)


def _whole(weight: jax.Array) -> Factors:
    """A site's matrix as a single component; the identity is on the shorter side of a table."""
    rows, columns = weight.shape[-2:]
    if weight.ndim == 2 and rows > 4 * columns:
        return Factors(weight.T[None], jnp.eye(columns)[None])
    identity = jnp.broadcast_to(jnp.eye(rows), (*weight.shape[:-1], rows))
    return Factors(identity[None], weight[None])
