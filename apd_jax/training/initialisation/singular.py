"""Initial components of the target's singular vectors, those that are used together in one.

Every site's matrix is a sum of rank-one terms, its singular values with their vectors. Terms of all
sites that matter on the same rows go to the same component, so that a component starts as a part of
the computation that spans sites, and the components add up to the target from the first step.

What the network does on every input alike comes first: the parts of all matrices that read their
mean inputs (`constant_parts`) go to the first component. Otherwise several components would hold
these parts, and be active always.

Letters: B batch, T positions, R rows, Q rank-one terms of all sites, q of one block, C components,
G stacked blocks, m rank, n probes.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import blocks, randomness, sites, validity
from apd_jax.attribution import metrics, routes, used_together
from apd_jax.components import Components, Factors, num_components
from apd_jax.objective.objective import Objective
from apd_jax.programs import linalg
from apd_jax.sites import PyTree, Target
from apd_jax.training.initialisation import constant_parts
from apd_jax.training.initialisation.constant_parts import MeanInput, mean_inputs

_ROWS = 1024  # on which terms are compared
_PROBES = 8  # of the sketch that they are compared by


def deal_singular_vectors(
    objective: Objective,
    target: Target,
    x: PyTree,
    components: Components,
    block_size: int | None = None,
) -> Components:
    """Give the first component what reads the mean inputs, and each singular vectors used together.

    The use of a term on a row is its attribution, `|∂f/∂θ · u_q v_qᵀ|`, in the objective's metric
    and per position where the objective is, by the sketch. Terms are grouped by the cosine of their
    uses (spherical k-means), then dealt in the order of their size, each to the most similar
    component with room at the term's site. Slots of a component that stay free are zero matrices
    which read at random and write nothing, so that training can use them.

    Args:
      objective: the metric and whether components are chosen for positions.
      target: the network.
      x: [B, ...] inputs; the first are used.
      components: components of the shapes to return; free slots take their readings.
      block_size: number of inputs that are looked at together; None for all.

    Returns:
      Components that add up to the target's weights where `C·m` is at least the rank of a site's
      matrix and one more, or at least d_in, and to an approximation of rank `C·m` elsewhere: the
      part that reads the mean input, and the best approximation of the rest.
    """
    count = num_components(components)
    ranks = {site: factors.reads.shape[-2] for site, factors in components.items()}
    x = _few(objective, target, x)
    means = mean_inputs(objective, target, x, block_size)
    terms = {
        site: _terms(weight, count * ranks[site], means.get(site))
        for site, weight in target.weights.items()
    }
    uses = _uses(objective, target, terms, x, block_size)
    blocks, room = _blocks(terms, ranks)
    constant = _constant(terms, means)
    mass = jnp.where(constant, 0.0, jnp.linalg.norm(uses, axis=0))
    similarity = used_together.similarity(uses, mass, count)
    # Constant parts choose before all others.
    similarity = jnp.where(constant[:, None], 2.0 * (jnp.arange(count) == 0), similarity)
    component, slot = _deal(similarity, jnp.where(constant, jnp.inf, mass), blocks, room)
    dealt, start = {}, 0
    for site, factors in components.items():
        mine = slice(start, start + terms[site].num_components)
        dealt[site] = _filled(factors, terms[site], component[mine], slot[mine])
        start = mine.stop
    return dealt


def _few(objective: Objective, target: Target, x: PyTree) -> PyTree:
    """The first inputs, as many as have the rows that terms are compared on."""
    length = math.prod(sites.position_shape(target, x)) if objective.per_position else 1
    count = min(sites.batch_size(x), max(1, _ROWS // length))
    return jax.tree.map(lambda leaf: leaf[:count], x)


def _terms(weight: jax.Array, most: int, mean: MeanInput | None = None) -> Factors:
    """Rank-one terms of a site's matrix, at most so many of a block: C = q or G·q.

    The first of a block reads the mean input, if there is one; the others come largest first. A
    term of one block of a stack is zero in the others.
    """
    if mean is None:
        u, s, vt = linalg.svd(weight)
        factors = Factors.from_svd(u, s, vt, min(most, s.shape[-1]))
    else:
        factors = constant_parts.terms(weight, most, mean)
    if weight.ndim == 2:
        return Factors(*(side[:, None] for side in factors))

    def spread(side):  # [G, q, d] to [G·q, G, 1, d]
        alone = jnp.einsum("gqd,gh->gqhd", side, jnp.eye(len(side)))
        return alone.reshape(-1, *alone.shape[2:])[:, :, None]

    return Factors(*map(spread, factors))


def _blocks(terms: Components, ranks: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """The block of every term, counted through all sites, and the ranks of all blocks."""
    found: list[np.ndarray] = []
    room: list[int] = []
    for site, factors in terms.items():
        stacked = factors.reads.shape[1] if factors.stacked else 1
        each = factors.num_components // stacked
        found.append(len(room) + np.repeat(np.arange(stacked), each))
        room += stacked * [ranks[site]]
    return np.concatenate(found), np.array(room)


def _constant(terms: Components, means: dict[str, MeanInput]) -> jax.Array:
    """Which terms of all sites read a mean input that counts, bool [Q]."""
    found = []
    for site, factors in terms.items():
        blocks = factors.reads.shape[1] if factors.stacked else 1
        place = jnp.arange(factors.num_components).reshape(blocks, -1)
        counts = means[site].counts if site in means else jnp.zeros(blocks, bool)
        found.append(((place == place[:, :1]) & counts.reshape(-1, 1)).reshape(-1))
    return jnp.concatenate(found)


def _uses(
    objective: Objective, target: Target, terms: Components, x: PyTree, block_size: int | None
) -> jax.Array:
    """Uses of all terms on some rows, [R, Q]; zeros on rows that don't count."""
    positions = objective.per_position

    def some(inputs, valid):
        at = routes.linearise(target, inputs, objective.metric, positions, valid)
        at = at._replace(outputs=validity.keep(valid, at.outputs))
        probes = metrics.probes(objective.metric, randomness.root(0), at.outputs, _PROBES)
        found = []
        for site, factors in terms.items():  # the network is pulled back once for all sites
            records = {key: record for key, record in at.records.items() if record.name == site}
            alone = at._replace(records=records)
            along = routes.along_directions(alone, {site: factors}, probes)
            found.append(jnp.sqrt(jnp.sum(jnp.square(along), axis=0)))
        uses = jnp.concatenate(found, axis=1)
        if valid is not None:
            lead = next(iter(at.zeros.values())).shape[: at.lead]
            uses = uses * validity.of_rows(valid, lead).reshape(-1, 1)
        return uses.reshape(sites.batch_size(inputs), -1, uses.shape[-1])

    def of_part(part):
        return sites.over_examples(some, target, part, objective.counted(part))

    uses = blocks.over_blocks(of_part, x, block_size)
    return uses.reshape(-1, uses.shape[-1])


def _deal(
    similarity: jax.Array, mass: jax.Array, blocks: np.ndarray, room: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """Deal terms to components, the largest first.

    Args:
      similarity: [Q, C].
      mass: [Q].
      blocks: int [Q], the block (a site, or a block of its stack) of every term.
      room: int [blocks], how many terms of a block a component can have.

    Returns:
      The component of every term, and its place among the component's terms of that block.
    """
    block_of, most = jnp.asarray(blocks), jnp.asarray(room)

    def one(counts, term):
        block = block_of[term]
        free = counts[:, block] < most[block]
        component = jnp.argmax(jnp.where(free, similarity[term], -jnp.inf))
        slot = counts[component, block]
        return counts.at[component, block].add(1), (component, slot)

    # Large terms choose first: where a component is full, it is a small term that has to go to the
    # next best one.
    order = jnp.argsort(-mass)
    counts = jnp.zeros((similarity.shape[1], len(room)), jnp.int32)
    _, (component, slot) = jax.lax.scan(one, counts, order)
    back = jnp.argsort(order)
    return component[back], slot[back]


def _filled(factors: Factors, terms: Factors, component: jax.Array, slot: jax.Array) -> Factors:
    """Put one site's terms into their slots; free slots keep their readings and write nothing.

    So do those of terms that are zero.
    """
    size = jnp.sqrt(jnp.mean(jnp.square(terms.reads)))
    own = jnp.sqrt(jnp.mean(jnp.square(factors.reads)))
    reads = factors.reads * (size / jnp.maximum(own, 1e-30))
    place: tuple[jax.Array, ...]
    if not factors.stacked:
        place = component, slot
        sides = (side[:, 0] for side in terms)
    else:
        blocks = terms.reads.shape[1]
        block = jnp.repeat(jnp.arange(blocks), terms.num_components // blocks)
        place = component, block, slot
        sides = (side[jnp.arange(len(side)), block, 0] for side in terms)
    own_reads, own_writes = sides
    kept = jnp.linalg.norm(own_reads, axis=-1, keepdims=True) > 0
    own_reads = jnp.where(kept, own_reads, reads[place])
    writes = jnp.zeros_like(factors.writes)
    return Factors(reads.at[place].set(own_reads), writes.at[place].set(own_writes))
