"""What each loss term is worth in a given network: coefficients then mean the same in every one.

Letters: B batch, N number of decomposed weights.
"""

import dataclasses

import jax
import jax.numpy as jnp

from apd_jax import sites
from apd_jax.attribution.attributed import Attributed
from apd_jax.components import Factors
from apd_jax.objective.objective import Objective
from apd_jax.objective.selection import Selected
from apd_jax.objective.terms import TERMS, Step
from apd_jax.sites import PyTree, Target


def scales(
    objective: Objective, target: Target, x: PyTree, key: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Each term's value without any component, and of simplicity that of the target itself.

    Terms that compare weights, outputs or activations are divided by their values with all weights
    zero; simplicity by the Schatten norms of the target's matrices, `(1/N) Σ_l Σ_i σ_{l,i}^p`, the
    price of a single component that does everything. Losses do not depend then on the units of
    weights and outputs.

    Args:
      objective: its terms of nonzero coefficient are measured.
      target: the network.
      x: [B, ...] inputs; a large batch.
      key: of random masks.

    Returns:
      `{term: scalar}` of the terms that have a unit.
    """
    whole = {name: _svd_factors(weight) for name, weight in target.weights.items()}
    nothing = jax.tree.map(jnp.zeros_like, whole)
    rows = sites.position_shape(target, x) if objective.per_position else ()
    scores = jnp.ones((sites.batch_size(x), *rows, 1))
    attributed = Attributed(scores, *objective.own_pass(target, x))
    always = Selected(scores > 0, None)
    weights = dataclasses.asdict(objective.coefficients)
    values = {}
    for name, term in TERMS.items():
        if weights[name] and term.unit:
            components = whole if term.unit == "whole" else nothing
            value = term.value(Step(objective, target, components, x, attributed, always, key))
            values[name] = jnp.where(value > 0, value, 1.0)
    return values


def _svd_factors(weight: jax.Array) -> Factors:
    """A site's matrix [(G,) d_in, d_out] as a single component of full rank."""
    u, s, vt = jnp.linalg.svd(weight, full_matrices=False)
    root = jnp.sqrt(s)[..., None]
    return Factors((root * jnp.swapaxes(u, -1, -2))[None], (root * vt)[None])
