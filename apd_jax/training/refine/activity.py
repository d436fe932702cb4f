"""What the moves are based on: the rows that components serve, what sites read, and the errors.

Letters: R rows of the mask (N examples, or N·T positions of them), B examples of a block, C
components, G blocks of a stacked site, d_in width that a site reads.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from apd_jax import blocks, sites, validity
from apd_jax.components import Components, num_components
from apd_jax.masked.forward import is_look_up
from apd_jax.objective.distances import of_each_row
from apd_jax.objective.objective import Objective
from apd_jax.objective.terms import Step
from apd_jax.sites import Patches, PyTree, Target
from apd_jax.training.refine import site_rows
from apd_jax.training.refine.rules import Measure


class Activity(NamedTuple):
    """What the components do on a batch, with the selection of the training.

    Attributes:
      moments: function of any number of weights w [R], which gives for each of them `{site:
        Σ_b w_b x_bᵀ x_b}`, [(G,) d_in, d_in], of the rows x that the site reads at its first use in
        the target's pass, several of an example perhaps; for a look-up, whose rows are one-hot, the
        diagonal [d_in]. The network is run again, block by block.
      directions: [R, d], the rows of the site used first (their mean, if there are several; those
        of its first block, if it is stacked) at unit norm; see `_directions`.
      weights: [R, C], `s_c A_c²`, or its share `s_c A_c² / Σ_d A_d²`: how much each component does
        for each row; 0 for a component that is always active.
      errors: [R], mean squared error of the masked output, or its distance in minimality's metric.
      stakes: [R], the same with no component at all.
      counted: [R], 1 for the rows that count, 0 for the rest.
    """

    moments: Callable[..., list[dict[str, jax.Array]]]
    directions: jax.Array
    weights: jax.Array
    errors: jax.Array
    stakes: jax.Array
    counted: jax.Array

    @property
    def mass(self) -> jax.Array:
        """[C], how much each component does for the whole batch."""
        return jnp.sum(self.weights, axis=0)

    def free(self, share: float) -> jax.Array:
        """[C] bool: components whose mass is below a share of the typical one.

        The typical mass is the mean weighted by mass itself, `Σ mass² / Σ mass`: unlike the plain
        mean or the median it does not depend on how many components have no mass.
        """
        mass = self.mass
        typical = jnp.sum(jnp.square(mass)) / jnp.maximum(jnp.sum(mass), 1e-30)
        return mass < share * typical


def look(
    objective: Objective,
    target: Target,
    components: Components,
    x: PyTree,
    key: jax.Array | None = None,
    multiplier: jax.Array | None = None,
    block_size: int | None = None,
    measure: Measure = "squares",
) -> Activity:
    """Run target and masked components on a batch, in blocks.

    Args:
      objective, target, components, x, key, multiplier: see `Objective.terms`.
      block_size: number of examples that are evaluated together; None for all.
      measure: see `rules.Rules`.
    """

    def of_part(part):
        return _look(objective, target, components, part, key, multiplier, measure)

    found = blocks.joined(blocks.over_blocks(of_part, x, block_size))
    moments = _moments(objective, target, components, x, block_size)
    return Activity(moments, *found)


def _moments(objective, target, components, x, block_size) -> Callable:
    """`Activity.moments`, which holds nothing of the size of a site's rows."""

    def of_site(record, factors, counted, weights):
        width = (factors.writes if record.placement.transposed else factors.reads).shape[-1]

        def of_some(some):
            read, valid, weights = some
            alone = dataclasses.replace(record, x=read)
            rows = site_rows.table(alone, factors, weights[0].size, valid)
            return [site_rows.second_moments(rows, own.reshape(-1), width) for own in weights]

        # Patches are formed for one example at a time.
        size = 1 if isinstance(record.x, Patches) else None
        return blocks.total(of_some, (record.x, counted, weights), size)

    def moments(*weights: jax.Array) -> list[dict[str, jax.Array]]:
        def of_block(part):
            inputs, own = part
            records = site_rows.first_uses(objective.own_pass(target, inputs)[1])
            counted = objective.counted(inputs)
            return {
                site: of_site(records[site], factors, counted, own)
                for site, factors in components.items()
            }

        count = blocks.covered(sites.batch_size(x), block_size)
        seen = jax.tree.map(lambda leaf: leaf[:count], x)
        rows = [own.reshape(count, -1) for own in weights]
        found = blocks.total(of_block, (seen, rows), block_size)
        return [{site: found[site][n] for site in found} for n in range(len(weights))]

    return moments


def _look(objective, target, components, x, key, multiplier, measure) -> tuple[jax.Array, ...]:
    """What `Activity` has besides moments, of one block."""
    attributed = objective.attribute(target, components, x, key)
    chosen = objective.select(attributed.scores, x, multiplier)
    step = Step(objective, target, components, x, attributed, chosen)
    masked, _ = step.masked
    # The error of no component is the unit of all errors: thresholds then do not depend on the
    # units of the outputs.
    without = target.with_weights({n: jnp.zeros_like(w) for n, w in target.weights.items()})(x)
    total = num_components(components)
    num_rows = chosen.mask.size // total

    def error(outputs):
        if measure == "minimality":
            axes = chosen.mask.ndim - 2
            loss = objective.minimality_loss
            return of_each_row(loss, axes, outputs, attributed.outputs, step.valid)
        pairs = (validity.keep(step.valid, tree) for tree in (outputs, attributed.outputs))
        change = jax.tree.map(jnp.subtract, *pairs)
        flat = [leaf.reshape(num_rows, -1) for leaf in jax.tree.leaves(change)]
        table = jnp.concatenate(flat, axis=1)
        if not objective.per_position:
            table = validity.evened(step.valid, table, change)
        return jnp.mean(jnp.square(table), axis=1)

    # The component that is always active belongs to no mechanism: it must not be split or gathered
    # from, and its mass would hide that of the others.
    mask = (chosen.mask & ~objective.always_active(total)).reshape(num_rows, total)
    squares = jnp.square(attributed.scores.reshape(num_rows, total))
    if measure == "minimality":
        # Gradients of a divergence differ by orders of magnitude between rows. Shares give every
        # row the same weight.
        squares /= jnp.maximum(jnp.sum(squares, axis=1, keepdims=True), 1e-30)
    weights = mask * squares
    directions = _directions(target, attributed.records, components, num_rows, step.valid)
    counted = jnp.ones(num_rows) if step.valid_rows is None else step.valid_rows.astype("float32")
    return directions, weights, error(masked), error(without), counted


def _directions(target, records, components, num_rows, valid) -> jax.Array:
    """Directions [R, d] of what the site used first reads.

    Of a look-up in a table that is longer than wide they are those of the entries in the table:
    one-hot rows would make matrices of the size of the vocabulary squared.
    """
    name, record = next(iter(site_rows.first_uses(records).items()))

    def mean_of(some):
        alone = dataclasses.replace(record, x=some[0])
        share = num_rows * sites.batch_size(some[0]) // sites.batch_size(record.x)
        read = site_rows.table(alone, components[name], share, some[1])
        if is_look_up(read):
            read = site_rows.entries(read, target.weights[name], record.placement.transposed)
        return (read[0] if read.ndim == 4 else read).mean(axis=1)

    size = 1 if isinstance(record.x, Patches) else None
    mean = blocks.joined(blocks.over_blocks(mean_of, (record.x, valid), size))
    norms = jnp.linalg.norm(mean, axis=-1, keepdims=True)
    return mean / jnp.where(norms > 0, norms, 1)
