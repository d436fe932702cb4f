"""What the moves are based on: the rows that components serve, what sites read, and the errors.

Letters: R rows of the mask (B examples, or B·T positions of them), C components, G blocks of a
stacked site, n rows at a site, d_in width that a site reads.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import blocks, validity
from apd_jax.components import Components, num_components
from apd_jax.masked.forward import is_look_up
from apd_jax.objective.objective import Objective
from apd_jax.objective.terms import Step
from apd_jax.sites import Patches, PyTree, Records, SiteRecord, Target


class Evidence(NamedTuple):
    """What the components do on a batch, with the selection of the training.

    Attributes:
      rows: `{site: [R, n, d_in]}`, what each site reads at its first use in the target's pass;
        [G, R, n, d_in] of a stacked site, indices [R, n] of a look-up (d_in where nothing
        counts). Of more rows than d_in there are d_in with the same second moments.
      directions: [R, d], the rows of the site used first (their mean, if there are several; those
        of its first block, if it is stacked) at unit norm; see `_directions`.
      weights: [R, C], `s_c A_c²`: how much each component does for each row; 0 for a component that
        is always active.
      errors: [R], mean squared error of the masked output.
      stakes: [R], mean squared error with no component at all.
      counted: [R], 1 for the rows that count, 0 for the rest.
    """

    rows: dict[str, jax.Array]
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
) -> Evidence:
    """Run target and masked components on a batch, in blocks.

    Args:
      objective, target, components, x, key, multiplier: see `Objective.terms`.
      block_size: number of examples that are looked at together; None for all.
    """

    def of_part(part):
        return _look(objective, target, components, part, key, multiplier)

    parts = blocks.over_blocks(of_part, x, block_size)
    rows = {}
    for name, read in parts.rows.items():
        if components[name].stacked:  # [number, G, R, n, d] to [G, number·R, n, d]
            read = jnp.moveaxis(read, 0, 1)
            rows[name] = read.reshape(read.shape[0], -1, *read.shape[3:])
        else:
            rows[name] = blocks.joined(read)
    return Evidence(rows, *(blocks.joined(leaf) for leaf in parts[1:]))


def _look(objective, target, components, x, key, multiplier) -> Evidence:
    """`look` on one block."""
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
        pairs = (validity.keep(step.valid, tree) for tree in (outputs, attributed.outputs))
        change = jax.tree.map(jnp.subtract, *pairs)
        flat = [leaf.reshape(num_rows, -1) for leaf in jax.tree.leaves(change)]
        table = jnp.concatenate(flat, axis=1)
        if not objective.per_position:
            table = validity.evened(step.valid, table, change)
        return jnp.mean(jnp.square(table), axis=1)

    rows = read_rows(attributed.records, components, num_rows, step.valid)
    # The component that is always active belongs to no mechanism: it must not be split or gathered
    # from, and its mass would hide that of the others.
    mask = (chosen.mask & ~objective.always_active(total)).reshape(num_rows, total)
    weights = mask * jnp.square(attributed.scores.reshape(num_rows, total))
    directions = _directions(target, attributed.records, rows)
    counted = jnp.ones(num_rows) if step.valid_rows is None else step.valid_rows.astype("float32")
    rows = {name: _compressed(read) for name, read in rows.items()}
    return Evidence(rows, directions, weights, error(masked), error(without), counted)


def _compressed(rows: jax.Array) -> jax.Array:
    """At most d_in rows [..., d_in, d_in] with the second moments of [..., n, d_in]."""
    if is_look_up(rows) or rows.shape[-2] <= rows.shape[-1]:
        return rows
    # `Rᵀ R = XᵀX`: all that the moves use of an example's rows is their sum of outer products, so
    # that d_in rows stand for any number of positions.
    return jnp.linalg.qr(rows, mode="r")


def always_transposed(records: Records) -> set[str]:
    """Sites of which every use is transposed, so that they read by their output side."""
    straight = {r.name for r in records.values() if not r.placement.transposed}
    return {record.name for record in records.values()} - straight


def read_rows(
    records: Records, components: Components, num_rows: int, valid: validity.Valid = None
) -> dict[str, jax.Array]:
    """What every site reads at its first use, as `Evidence.rows`, but all n rows of each."""
    transposed = always_transposed(records)
    rows: dict[str, jax.Array] = {}
    for record in records.values():
        factors, place = components[record.name], record.placement
        # Later uses of a site see what its first use led to. A site that is read in both directions
        # is taken by its straight uses, since U reads only one side.
        if record.name in rows or place.transposed != (record.name in transposed):
            continue
        width = (factors.writes if place.transposed else factors.reads).shape[-1]
        x = _counted_rows(_full_rows(record, width), record, width, valid)
        if is_look_up(x):
            rows[record.name] = x.reshape(num_rows, -1)
            continue
        if factors.stacked:
            x = jnp.moveaxis(x, -2, 0)
            # In the order of the blocks in the site, not in that of the use.
            x = x if place.blocks is None else x[np.argsort(place.blocks)]
        blocks = x.shape[:1] if factors.stacked else ()
        rows[record.name] = x.reshape(*blocks, num_rows, -1, x.shape[-1])
    return rows


def _counted_rows(x: jax.Array, record: SiteRecord, width: int, valid: validity.Valid) -> jax.Array:
    """Rows with zeros where they don't count, or an index past the last, which nothing is at."""
    if valid is None:
        return x
    if is_look_up(x):
        return jnp.where(validity.of_site_rows(valid, x.shape, record.name), x, width)
    own = 1 + record.placement.stacked
    counted = validity.of_site_rows(valid, x.shape[: x.ndim - own], record.name)
    return jnp.where(counted.reshape(*counted.shape, *(1,) * own), x, 0)


def _directions(target: Target, records: Records, rows: dict[str, jax.Array]) -> jax.Array:
    """Directions [R, d] of what the site used first reads.

    Of a look-up in a table that is longer than wide they are those of the entries in the table:
    one-hot rows would make matrices of the size of the vocabulary squared.
    """
    name, read = next(iter(rows.items()))
    if is_look_up(read):
        weight = target.weights[name]
        table = weight.T if name in always_transposed(records) else weight
        length, width = table.shape
        if length > width:
            read = jnp.where((read < length)[..., None], table[jnp.minimum(read, length - 1)], 0)
        else:
            read = jax.nn.one_hot(read, length)
    elif read.ndim == 4:
        read = read[0]
    # One direction for every row of the mask, since that is what is clustered and gathered.
    mean = read.mean(axis=1)
    norms = jnp.linalg.norm(mean, axis=-1, keepdims=True)
    return mean / jnp.where(norms > 0, norms, 1)


def _full_rows(record: SiteRecord, width: int) -> jax.Array:
    """Rows of a use in the full input width of its site; a use may read only a part of it."""
    places = record.placement.rows
    x = record.x.formed() if isinstance(record.x, Patches) else record.x
    if is_look_up(x):
        return x if places is None else jnp.array(places)[x]
    if places is None:
        return x
    return jnp.zeros((*x.shape[:-1], width)).at[..., jnp.array(places)].set(x)


def as_read(components: Components, transposed: set[str]) -> Components:
    """Components with every site as it is read; applied again, the components themselves."""
    return {
        name: factors.transpose() if name in transposed else factors
        for name, factors in components.items()
    }
