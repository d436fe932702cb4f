"""The loss and its gradient from micro-batches, one after another, as for the whole batch.

The selection is that of the whole batch: the scores of all micro-batches come first. Each loss is a
mean over what counts, so that micro-batches enter by their share of that.
Letters: B batch, n micro-batches, C components.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from apd_jax import blocks, randomness, validity
from apd_jax.components import Components
from apd_jax.objective.coefficients import Multipliers
from apd_jax.objective.objective import Objective
from apd_jax.objective.selected import Selected
from apd_jax.objective.terms import TERMS
from apd_jax.programs import partition
from apd_jax.sites import PyTree, Target

Loss = tuple[jax.Array, tuple[dict[str, jax.Array], jax.Array, jax.Array, Any]]


def value_and_gradient(
    objective: Objective,
    target: Target,
    components: Components,
    x: PyTree,
    key: jax.Array | None,
    multipliers: Multipliers,
    number: int,
) -> tuple[Loss, Components]:
    """The total loss, what `train_step` measures beside it, and the gradient.

    Args:
      objective, target, components, x, key, multipliers: see `step.train_step`.
      number: n; B is a multiple of it.
    """
    key = randomness.root(0) if key is None else key
    keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(jnp.arange(number))
    parts = partition.over_data(blocks.divided(x, number), blocks=True)

    def scores_of(part):
        fixed = jax.lax.stop_gradient(components)
        return objective.attribute(target, fixed, *part).scores

    chosen = objective.select(
        blocks.joined(jax.lax.map(scores_of, (parts, keys))), x, multipliers.topk
    )
    counts = chosen.counts()
    active = jnp.sum(counts) / objective.num_rows(chosen, x)
    each_chosen = _divided(chosen, number)
    shares = _shares(objective, target, parts, each_chosen.mask)

    def total(components, part, key, own, share):
        terms, _ = objective.terms(target, components, part, key, multipliers, own, l0=active)
        terms = {name: share[TERMS[name].over] * value for name, value in terms.items()}
        return objective.total(terms, multipliers), terms

    differentiated = jax.value_and_grad(total, has_aux=True)
    (loss, terms), gradient = blocks.summed(
        lambda part: differentiated(components, *part), (parts, keys, each_chosen, shares)
    )
    return (loss, (terms, counts, active, chosen.nonfinite)), gradient


def _divided(chosen: Selected, number: int) -> Selected:
    """The selection of each micro-batch, leaves [n, ...].

    Any number of the pairs may be in one of them: pairs of others get a component number of C.
    """
    masks = chosen.mask.reshape(number, -1, *chosen.mask.shape[1:])
    if chosen.pairs is None:
        return Selected(masks, None)
    size = math.prod(masks.shape[1:-1])
    row = chosen.pairs[0] - size * jnp.arange(number)[:, None]
    here = (row >= 0) & (row < size)
    component = jnp.where(here, chosen.pairs[1], masks.shape[-1])
    return Selected(masks, (jnp.where(here, row, 0), component))


def _shares(objective: Objective, target: Target, parts: PyTree, masks: jax.Array) -> Any:
    """The share of every micro-batch in what a loss is a mean over, `{name: [n]}`."""
    number = len(masks)
    even = jnp.full(number, 1 / number)
    if objective.valid is None:
        return {"outputs": even, "rows": even, "weights": even}

    def counts(part, mask):
        valid = objective.counted(part)
        outputs = jax.tree.leaves(jax.eval_shape(target, part))
        entries = sum(validity.num_entries(valid, leaf) for leaf in outputs)
        rows = jnp.sum(validity.of_rows(valid, mask.shape[:-1]))
        return {"outputs": entries, "rows": 1.0 * rows}

    found = jax.lax.map(lambda part: counts(*part), (parts, masks))
    shares = {name: each / jnp.maximum(jnp.sum(each), 1) for name, each in found.items()}
    return shares | {"weights": even}
