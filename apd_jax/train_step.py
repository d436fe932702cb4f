"""One optimisation step of APD, a pure function of state, target and batch.

Letters: B batch, C components.
"""

import collections
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from apd_jax import attributions, forward, losses, optimizers, sites
from apd_jax.components import Components, normalise_reads
from apd_jax.objective import Coefficients, Objective
from apd_jax.selection import Selected
from apd_jax.sites import Records, Target

Metrics = dict[str, jax.Array]
DEAD_AFTER = 1000


class TrainState(NamedTuple):
    """Everything that changes while a network is decomposed.

    Attributes:
      step: int32 scalar, optimiser steps taken.
      components: `{site: Factors}`.
      optimizer: state of the optax optimiser.
      last_active: int32 [C], the last step at which a component was active on any example.
    """

    step: jax.Array
    components: Components
    optimizer: Any
    last_active: jax.Array


def _site_uses(records: Records) -> dict[str, int]:
    return dict(collections.Counter(record.name for record in records.values()))


def masked_operation(
    objective: Objective, components: Components, chosen: Selected, reads: forward.Reads
) -> sites.Operation:
    """The masked operation by the objective's route; `reads` are those known beforehand."""
    route = objective.routes.masked_route
    if chosen.pairs is None:
        route = "dense"
    elif route == "auto":
        route = forward.choose_masked_route(chosen.pairs[0].size, *chosen.mask.shape)
    if route == "dense":
        return forward.masked(components, chosen.mask)
    return forward.masked_pairs(components, chosen.pairs, chosen.mask.shape[0], reads)


def loss_terms(
    objective: Objective, target: Target, components: Components, x: jax.Array
) -> tuple[dict[str, jax.Array], Selected]:
    """Every loss term of nonzero coefficient, and what was selected.

    Args:
      objective: what to compute.
      target: the network.
      components: `{site: Factors}`; gradients flow through the terms to them.
      x: [B, ...] inputs.

    Returns:
      `{term: scalar}` before weighting, and the active pairs (all of them without selection).
    """
    weights = objective.coefficients
    uses_lp = weights.lp_minimality > 0 or weights.lp_simplicity > 0
    attributed = attributions.attribute(
        target,
        components if uses_lp else jax.lax.stop_gradient(components),
        x,
        mode=objective.routes.attribution_mode,
        source=objective.attribution_source,
    )
    if objective.attribution_source != "target":
        outputs, records = sites.run(target, x, sites.as_is)
        attributed = attributed._replace(outputs=outputs, records=records)
    uses = _site_uses(attributed.records)
    scores = attributed.scores
    terms = {}
    if weights.faithfulness:
        terms["faithfulness"] = losses.faithfulness(components, target.weights, uses)
    chosen = objective.select(scores, x)
    if objective.selects:
        terms |= _topk_terms(objective, target, components, x, chosen, attributed)
    if weights.output:
        full, _ = sites.run(target, x, forward.composed(components))
        terms["output"] = losses.output_mse(full, attributed.outputs)
    if weights.lp_minimality:
        terms["lp_minimality"] = losses.lp_minimality(scores, p=objective.lp_p)
    if weights.lp_simplicity:
        terms["lp_simplicity"] = losses.lp_simplicity(
            components, scores, p=objective.lp_p, schatten_p=objective.schatten_p, uses=uses
        )
    return terms, chosen


def _topk_terms(objective, target, components, x, chosen, attributed):
    weights = objective.coefficients
    outputs, records = attributed.outputs, attributed.records
    terms = {}
    if weights.minimality or weights.activation:
        operation = masked_operation(objective, components, chosen, attributed.reads)
        masked_outputs, masked_records = sites.run(target, x, operation)
    if weights.minimality:
        compare = losses.output_kl if objective.output_loss == "kl" else losses.output_mse
        terms["minimality"] = compare(masked_outputs, outputs)
    if weights.activation:
        terms["activation"] = losses.hidden_activations(
            masked_records, records, objective.hidden_sites, objective.hidden_activation
        )
    if weights.simplicity:
        terms["simplicity"] = losses.simplicity(
            components,
            chosen.counts(),
            p=objective.schatten_p,
            uses=_site_uses(records),
            batch_size=x.shape[0],
        )
    return terms


def weighted_sum(coefficients: Coefficients, terms: dict[str, jax.Array]) -> jax.Array:
    """The total loss, `Σ coefficient · term`."""
    return sum(
        (getattr(coefficients, name) * value for name, value in terms.items()), jnp.float32(0)
    )


def init_state(components: Components, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    num_components = next(iter(components.values())).reads.shape[0]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        components=components,
        optimizer=optimizer.init(components),
        last_active=jnp.zeros((num_components,), jnp.int32),
    )


def current_components(objective: Objective, state: TrainState) -> Components:
    """The components that a state stands for: with `unit_norm`, its U are normalised when used."""
    return normalise_reads(state.components) if objective.unit_norm else state.components


def train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    target: Target,
    state: TrainState,
    x: jax.Array,
) -> tuple[TrainState, Metrics]:
    """Take one step: attributions, selection, losses, gradient, Adam.

    Args:
      objective: what is minimised (static).
      optimizer: the optax optimiser (static).
      target: the network.
      state: the state.
      x: [B, ...] a batch of inputs.

    Returns:
      The next state, and metrics of this step measured before its update: `loss/<term>`,
      `loss/total`, `gradient_norm`, `active_components` (mean per example), `dead_components`
      (active on no example of the last 1000 steps).
    """

    def total(components):
        terms, chosen = loss_terms(objective, target, components, x)
        return weighted_sum(objective.coefficients, terms), (terms, chosen.counts())

    components = current_components(objective, state)
    (loss, (terms, counts)), gradient = jax.value_and_grad(total, has_aux=True)(components)
    components, optimizer_state, norm = optimizers.apply_gradient(
        optimizer, gradient, components, state.optimizer, objective.sphere_projection
    )
    last_active = jnp.where(counts > 0, state.step, state.last_active)
    metrics = {f"loss/{name}": value for name, value in terms.items()}
    metrics |= {
        "loss/total": loss,
        "gradient_norm": norm,
        "active_components": jnp.sum(counts) / x.shape[0],
        "dead_components": jnp.sum(state.step - last_active >= DEAD_AFTER),
    }
    return TrainState(state.step + 1, components, optimizer_state, last_active), metrics
