"""The scale of each loss term in a given network, so that coefficients transfer between networks.

Letters: B batch, N number of decomposed weights.
"""

import jax
import jax.numpy as jnp

from apd_jax import blocks, sites, validity
from apd_jax.attribution.attributed import Attributed
from apd_jax.components import Factors
from apd_jax.config_fields import with_unchecked
from apd_jax.objective.objective import Objective
from apd_jax.objective.selected import Selected
from apd_jax.objective.terms import TERMS, Step
from apd_jax.sites import PyTree, Target


def scales(
    objective: Objective,
    target: Target,
    x: PyTree,
    key: jax.Array | None = None,
    block_size: int | None = None,
) -> dict[str, jax.Array]:
    """Compute the values that relative losses are divided by.

    Terms that compare weights, outputs or activations are divided by their values with all weights
    zero; simplicity by the Schatten norms of the target's matrices, `(1/N) Σ_l Σ_i σ_{l,i}^p`, the
    loss of a single component that does everything. Losses then do not depend on the units of
    weights and outputs.

    Args:
      objective: the terms of nonzero coefficient are measured.
      target: the network.
      x: [B, ...] inputs; a large batch.
      key: PRNG key for the random masks.
      block_size: number of inputs that are looked at together; None for all.

    Returns:
      `{name in checkpoints: scalar}` for the terms that have a unit (`terms.Term.unit`).
    """
    values, weights = blocks.over_blocks(
        lambda part: (_values(objective, target, part, key), objective.weight(part)), x, block_size
    )
    means = blocks.mean(values, None if objective.valid is None else weights)
    # A value of 0 (a network of zeros) is no unit: the loss then stays as it is.
    return {name: jnp.where(value > 0, value, 1.0) for name, value in means.items()}


def _values(
    objective: Objective, target: Target, x: PyTree, key: jax.Array | None
) -> dict[str, jax.Array]:
    """The values on one block."""
    objective = with_unchecked(objective, {"adversary_share": 0.0})  # all are active: no adversary
    whole = {name: Factors.from_matrices(w[None]) for name, w in target.weights.items()}
    nothing = jax.tree.map(jnp.zeros_like, whole)
    rows = sites.position_shape(target, x) if objective.per_position else ()
    scores = jnp.ones((sites.batch_size(x), *rows, 1))
    attributed = Attributed(scores, *objective.own_pass(target, x))
    valid, mask = objective.counted(x), scores > 0
    if valid is not None:
        mask = mask & validity.of_rows(valid, mask.shape[:-1])[..., None]
    always = Selected(mask, None)
    values = {}
    for name in objective.coefficients.used():
        term = TERMS[name]
        if term.unit:
            components = whole if term.unit == "whole" else nothing
            step = Step(objective, target, components, x, attributed, always, key)
            # The other data of a targeted decomposition are measured in the unit of minimality.
            value = TERMS["minimality"].value if name == "other" else term.value
            values[term.saved or name] = value(step)
    return values
