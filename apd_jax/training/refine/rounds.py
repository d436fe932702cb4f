"""A round of refinement, as the training loop runs it: judge the last round, then move.

Letters: B batch, C components.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from apd_jax import blocks, randomness, sites
from apd_jax.components import Components, num_components
from apd_jax.data import SampleBatch
from apd_jax.objective.coefficients import CONSTANT, Multipliers
from apd_jax.objective.objective import Objective
from apd_jax.objective.terms import TERMS
from apd_jax.programs.axes import spread
from apd_jax.sites import PyTree, Target
from apd_jax.training.config import Settings
from apd_jax.training.mean_loss import mean_loss
from apd_jax.training.refine import shares
from apd_jax.training.refine.activity import look
from apd_jax.training.refine.clean import clean, share
from apd_jax.training.refine.gather import gather
from apd_jax.training.refine.merge import merge
from apd_jax.training.refine.rules import Rules
from apd_jax.training.refine.site_rows import always_transposed, as_read
from apd_jax.training.refine.split import split

# A round is undone if errors are above this multiple of those before it: errors of two batches
# differ, and a good move may need more steps to pay off.
_SLACK = 1.2
_ERRORS_ALONE = {name: 0.0 for name, term in TERMS.items() if not term.error}
MOVES = ("merges", "splits", "gathers", "cleans")


class Refined(NamedTuple):
    """The part of the training state that belongs to rounds.

    Attributes:
      before: `{site: Factors}`, the components before the last round.
      acted: bool, whether that round moved anything.
      counts: `{name: int32 scalar}`, totals over all rounds: moves of each kind, rounds `undone`.
    """

    before: Components
    acted: jax.Array
    counts: dict[str, jax.Array]


def init(components: Components) -> Refined:
    """The state before the first round."""
    counts = {name: jnp.zeros((), jnp.int32) for name in (*MOVES, "undone")}
    return Refined(jax.tree.map(jnp.copy, components), jnp.zeros((), bool), counts)


def move(
    objective: Objective,
    rules: Rules,
    target: Target,
    components: Components,
    x: PyTree,
    key: jax.Array | None = None,
    multipliers: Multipliers = CONSTANT,
    last: jax.Array | bool = False,
    block_size: int | None = None,
) -> tuple[Components, dict[str, jax.Array], jax.Array]:
    """Merge, split, gather and clean, in this order; the sum of components stays what it is.

    With `rules.share`, free components share what they hold in the last round; in earlier rounds
    the next moves would mix it again.

    Args:
      objective: the objective of the training.
      rules: thresholds of the moves.
      target: the network.
      components: `{site: Factors}`.
      x: [B, ...] inputs.
      key: PRNG key for the random directions of sketched attributions.
      multipliers: multipliers of the coefficients and of k at this step.
      last: whether this is the last round.
      block_size: number of inputs that are looked at together; None for all.

    Returns:
      The components, `{move: number}`, and [C] bool, the components that were touched.
    """
    total = num_components(components)
    # Shapes are enough to know which sites are only used transposed. Their factors are transposed
    # for the moves, so that U always is the side that reads.
    few = jax.tree.map(lambda leaf: leaf[:block_size], x)
    shapes = jax.eval_shape(lambda part: objective.own_pass(target, part)[1], few)
    transposed = always_transposed(shapes)

    def whole(parts):
        return as_read(parts, transposed)

    def loss(parts):
        return mean_loss(objective, target, whole(parts), x, key, multipliers, block_size)

    def seen_with(parts):
        topk, measure = multipliers.topk, rules.measure
        return look(objective, target, whole(parts), x, key, topk, block_size, measure)

    fixed = objective.always_active(total)
    parts = as_read(components, transposed)
    parts, merged, touched = merge(parts, fixed, cosine=rules.merge_cosine)

    def splits(parts, seen, free):
        return split(parts, seen, free, cosine=rules.split_cosine, limit=rules.limit)

    def gathers(parts, seen, free):
        errors_of = lambda others: seen_with(others).errors  # noqa: E731
        limits = {"share": rules.gather_error, "limit": rules.limit}
        return gather(parts, seen, free, errors_of, **limits)

    def cleans(parts, seen, free):
        return clean(parts, seen, free, loss)

    def shared(parts, seen, free):
        free &= last
        return share(parts, free), jnp.int32(0), free

    moves = [splits, gathers, cleans, *([shared] if rules.share else [])]

    # After every move components are looked at again: each frees some, or uses some up. A loop
    # compiles the look once.
    def make(number, carry):
        parts, touched, counts = carry
        seen = seen_with(parts)
        free = seen.free(rules.free_share) & ~fixed
        of_move = [functools.partial(one, parts, seen, free) for one in moves]
        parts, count, changed = jax.lax.switch(number, of_move)
        return parts, touched | changed, counts.at[number].set(count)

    start = parts, touched, jnp.zeros(len(moves), jnp.int32)
    parts, touched, counts = jax.lax.fori_loop(0, len(moves), make, start)
    made = (merged, *counts[: len(MOVES) - 1])
    return whole(parts), dict(zip(MOVES, made, strict=True)), touched


def num_examples(
    objective: Objective,
    rules: Rules,
    target: Target,
    sample_batch: SampleBatch,
    block_size: int | None,
) -> int:
    """Number of examples in a round: `rules.batch_size` rows, at most 256 blocks.

    Where rows are positions, there is at least one block of examples.

    Args:
      objective, rules: those of the training.
      target: the network.
      sample_batch: function that draws the examples.
      block_size: number of examples in a block.
    """
    most = blocks.affordable(rules.batch_size, block_size or rules.batch_size)
    if not objective.per_position:
        return most
    one = jax.eval_shape(lambda key: sample_batch(key, 1), randomness.root(0))
    each = math.prod(sites.position_shape(target, one))
    return max(most // each, min(most, block_size or most))


def make_round(
    settings: Settings,
) -> Callable[[Target, Any, jax.Array, SampleBatch], Any]:
    """Make the function `(target, state, key, sample_batch) -> state` that is called between steps.

    First it compares, on a fresh batch, the errors of the components (the loss terms that are
    errors) with those of the components before the last round: a round that raised them is undone.
    Otherwise, unless the last round is over, the moves follow.

    Args:
      settings: the hyperparameters; as many examples as a step has are looked at together.
    """
    objective, rules, block_size = settings.objective, settings.refine, settings.batch_size
    final = rules.rounds(settings.steps) * rules.spacing(settings.steps)

    @jax.default_matmul_precision("highest")
    def one_round(target, state, key, sample_batch):
        count = num_examples(objective, rules, target, sample_batch, block_size)
        x = sample_batch(randomness.stream_of_step(key, "round batch"), count)
        probes = randomness.stream_of_step(key, "round attribution")
        now = settings.multipliers(state)
        components = state.components
        # Terms that are no errors are multiplied by 0: a merge lowers the simplicity loss and a
        # split raises it, whether or not the move was right.
        errors_alone = now._replace(losses={**now.losses, **_ERRORS_ALONE})

        def error(parts):
            return mean_loss(objective, target, parts, x, probes, errors_alone, block_size)

        def moves(parts):
            return move(
                objective, rules, target, parts, x, probes, now, state.step == final, block_size
            )

        def none(parts):
            untouched = jnp.zeros(num_components(parts), bool)
            return parts, {name: jnp.int32(0) for name in MOVES}, untouched

        last = state.refined
        # A loop, so that the error is compiled once.
        before, after = jax.lax.map(
            lambda back: error(shares.select(back, last.before, components)),
            jnp.array([True, False]),
        )
        undo = last.acted & (_SLACK * before < after)
        # The steps since that round are lost with it: they were taken from the wrong components.
        components = shares.select(undo, last.before, components)
        # No moves follow at once: they would mostly be those that have just failed.
        acts = ~undo & (state.step <= final)
        moved, made, touched = jax.lax.cond(acts, moves, none, components)
        noise = randomness.stream_of_step(key, "round factors")
        counts = {name: count + made.get(name, undo) for name, count in last.counts.items()}
        return state._replace(
            components=refill(moved, noise, settings.unit_norm),
            optimizer=forget(state.optimizer, components, touched | undo),
            refined=Refined(components, jnp.any(touched), counts),
        )

    return one_round


def forget(optimizer_state: Any, components: Components, touched: jax.Array) -> Any:
    """Set the optimiser's moments of touched components to zero.

    The old moments point where the old content of a component was heading. Adam would follow them
    for about `1 / (1 - b1)` steps, and the second moments would scale its steps by gradients that
    no longer occur.

    Args:
      optimizer_state: any state of optax; its moments are the subtrees with the structure of the
        components, and everything else, such as the count of steps, is kept.
      components: `{site: Factors}`, for their structure.
      touched: [C] bool.
    """
    structure = jax.tree.structure(components)

    def is_moments(tree):
        return jax.tree.structure(tree) == structure

    def reset(leaf):
        return jnp.where(spread(touched, leaf.ndim), 0, leaf)

    return jax.tree.map(
        lambda tree: jax.tree.map(reset, tree) if is_moments(tree) else tree,
        optimizer_state,
        is_leaf=is_moments,
    )


def refill(components: Components, key: jax.Array, unit_norm: bool = False) -> Components:
    """Let terms that are zero read at random again and write nothing, so that they can learn.

    A term with both factors at zero has no gradient: each factor's gradient is a product with the
    other one. With random reads and zero writes the component's matrix is still zero, but the
    gradient of the writes is not.

    Args:
      components: `{site: Factors}`.
      key: PRNG key for the random reads.
      unit_norm: scale every term's reads to unit norm, and its writes inversely; `P_c` stays.
    """
    filled = {}
    for index, (site, factors) in enumerate(components.items()):
        noise = jax.random.normal(jax.random.fold_in(key, index), factors.reads.shape)
        scale = 0.1 * jnp.sqrt(jnp.mean(jnp.square(factors.reads)))
        scale = jnp.where(scale > 0, scale, 1.0)
        norms = jnp.linalg.norm(factors.reads, axis=-1, keepdims=True)
        reads = jnp.where(norms > 0, factors.reads, scale * noise)
        writes = jnp.where(norms > 0, factors.writes, 0)
        if unit_norm:
            norms = jnp.linalg.norm(reads, axis=-1, keepdims=True)
            reads, writes = reads / norms, writes * norms
        filled[site] = factors._replace(reads=reads, writes=writes)
    return filled
