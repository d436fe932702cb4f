"""What the moves are based on: the rows that components serve, what sites read, and the errors.

Letters: R rows of the mask (B examples, or B·T positions of them), C components, G blocks of a
stacked site, n rows at a site, d_in width that a site reads.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from apd_jax.components import Components, num_components
from apd_jax.masked.forward import is_look_up
from apd_jax.objective.objective import Objective
from apd_jax.objective.terms import Step
from apd_jax.sites import PyTree, Records, SiteRecord, Target
from apd_jax.training.refine.shares import Part, Parts


class Evidence(NamedTuple):
    """What the components do on a batch, with the selection of the training.

    Attributes:
      rows: `{part: [R, n, d_in]}`, what each part reads at its first use in the target's pass.
      directions: [R, d_in], the rows of the part used first (their mean, if there are several) at
        unit norm.
      weights: [R, C], `s_c A_c²`: how much each component does for each row; 0 for a component that
        is always active.
      errors: [R], mean squared error of the masked output.
      stakes: [R], mean squared error with no component at all.
    """

    rows: dict[Part, jax.Array]
    directions: jax.Array
    weights: jax.Array
    errors: jax.Array
    stakes: jax.Array

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
) -> Evidence:
    """Run target and masked components on a batch x [B, ...]; see `Objective.terms`."""
    attributed = objective.attribute(target, components, x, key)
    chosen = objective.select(attributed.scores, x, multiplier)
    masked, _ = Step(objective, target, components, x, attributed, chosen).masked
    without = target.with_weights({n: jnp.zeros_like(w) for n, w in target.weights.items()})(x)
    total = num_components(components)
    num_rows = chosen.mask.size // total

    def error(outputs):
        squares = jax.tree.map(lambda a, b: jnp.square(a - b), outputs, attributed.outputs)
        flat = [leaf.reshape(num_rows, -1) for leaf in jax.tree.leaves(squares)]
        return jnp.mean(jnp.concatenate(flat, axis=1), axis=1)

    rows = read_rows(attributed.records, components, num_rows)
    first = rows[next(iter(rows))].mean(axis=1)
    norms = jnp.linalg.norm(first, axis=-1, keepdims=True)
    mask = (chosen.mask & ~objective.always_active(total)).reshape(num_rows, total)
    weights = mask * jnp.square(attributed.scores.reshape(num_rows, total))
    directions = first / jnp.where(norms > 0, norms, 1)
    return Evidence(rows, directions, weights, error(masked), error(without))


def always_transposed(records: Records) -> set[str]:
    """Sites of which every use is transposed, so that they read by their output side."""
    straight = {r.name for r in records.values() if not r.placement.transposed}
    return {record.name for record in records.values()} - straight


def read_rows(records: Records, components: Components, num_rows: int) -> dict[Part, jax.Array]:
    """Rows [R, n, d_in] that every part reads at its first use; look-ups become one-hot rows."""
    transposed = always_transposed(records)
    rows: dict[Part, jax.Array] = {}
    for record in records.values():
        factors = components[record.name]
        if record.placement.transposed != (record.name in transposed):
            continue
        width = (factors.writes if record.placement.transposed else factors.reads).shape[-1]
        x = _full_rows(record, width)
        blocks = record.placement.blocks
        count = factors.reads.shape[1] if factors.stacked else 1
        for place, block in enumerate(range(count) if blocks is None else blocks):
            own = x[..., place, :] if factors.stacked else x
            rows.setdefault((record.name, block), own.reshape(num_rows, -1, width))
    return rows


def _full_rows(record: SiteRecord, width: int) -> jax.Array:
    """Rows of a use in the full input width of its site; a use may read only a part of it."""
    places = record.placement.rows
    if is_look_up(record.x):
        index = record.x if places is None else jnp.array(places)[record.x]
        return jax.nn.one_hot(index, width)
    if places is None:
        return record.x
    return jnp.zeros((*record.x.shape[:-1], width)).at[..., jnp.array(places)].set(record.x)


def apart(components: Components, transposed: set[str]) -> Parts:
    """Write components part by part: blocks of stacked sites separately, each as it is read."""
    parts = {}
    for name, factors in components.items():
        factors = factors.transpose() if name in transposed else factors
        if factors.stacked:
            for block in range(factors.reads.shape[1]):
                parts[name, block] = jax.tree.map(lambda leaf, g=block: leaf[:, g], factors)
        else:
            parts[name, 0] = factors
    return parts


def together(parts: Parts, components: Components, transposed: set[str]) -> Components:
    """The inverse of `apart`; only the shapes of `components` are used."""
    result = {}
    for name, factors in components.items():
        own = parts[name, 0]
        if factors.stacked:
            blocks = [parts[name, block] for block in range(factors.reads.shape[1])]
            own = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *blocks)
        result[name] = own.transpose() if name in transposed else own
    return result
