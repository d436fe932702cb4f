"""One optimisation step of APD, a pure function of state, target and batch.

Letters: B batch, C components.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from apd_jax.components import Components, num_components
from apd_jax.objective.coefficients import CONSTANT, Multipliers
from apd_jax.objective.objective import Objective
from apd_jax.runtime.metric_names import NONFINITE_SCORES
from apd_jax.sites import PyTree, Target
from apd_jax.training import accumulation
from apd_jax.training.eigenbasis import Basis
from apd_jax.training.optimizers import Optimizer

Metrics = dict[str, jax.Array]
DEAD_AFTER = 1000


class TrainState(NamedTuple):
    """Everything that changes while a network is decomposed.

    Attributes:
      step: int32 scalar, number of optimiser steps taken.
      components: `{site: Factors}`.
      optimizer: state of the optimiser.
      last_active: int32 [C], the last step at which a component was active on any example.
      scales: `{term: scalar}` that losses are divided by (`objective.normalisation.scales`); None
        for no division.
      refined: state of the rounds of refinement (`refine.rounds.Refined`); None without rounds.
    """

    step: jax.Array
    components: Components
    optimizer: Any
    last_active: jax.Array
    scales: dict[str, jax.Array] | None = None
    refined: Any = None


def init_state(
    components: Components, optimizer: Optimizer, bases: dict[str, Basis] | None = None
) -> TrainState:
    """The state before the first step; for `bases` see `Optimizer.init`."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        components=components,
        optimizer=optimizer.init(components, bases),
        last_active=jnp.zeros((num_components(components),), jnp.int32),
    )


def train_step(
    objective: Objective,
    optimizer: Optimizer,
    target: Target,
    state: TrainState,
    x: PyTree,
    key: jax.Array | None = None,
    multipliers: Multipliers = CONSTANT,
    accumulate: int = 1,
    other: PyTree = None,
) -> tuple[TrainState, Metrics]:
    """Take one step: attributions, selection, losses, gradient, Adam.

    Args:
      objective: what is minimised (static).
      optimizer: an `optimizers.decomposition_optimizer` (static).
      target: the network.
      state: the state.
      x: [B, ...] a batch of inputs.
      key: PRNG key for the sketch's random directions and for the random masks.
      multipliers: multipliers of the coefficients and of k at this step.
      accumulate: number of micro-batches (static); see `accumulation`.
      other: [B, ...] other data of a targeted decomposition, if there are any.

    Returns:
      The next state, and the metrics of this step, measured before its update: `loss/<term>`,
      `loss/total`, `gradient_norm`, `active_components` (mean per example, or per position where
      components are selected for positions), `dead_components` (active on no example of the last
      1000 steps), `count/nonfinite_scores` (attributions that are NaN or infinite, which are never
      selected).
    """

    def total(components):
        terms, chosen = objective.terms(target, components, x, key, multipliers, other=other)
        counts = chosen.counts()
        active = jnp.sum(counts) / objective.num_rows(chosen, x)
        return objective.total(terms, multipliers), (terms, counts, active, chosen.nonfinite)

    if accumulate > 1:
        (loss, (terms, counts, active, nonfinite)), gradient = accumulation.value_and_gradient(
            objective, target, state.components, x, key, multipliers, accumulate
        )
    else:
        value_and_gradient = jax.value_and_grad(total, has_aux=True)
        (loss, (terms, counts, active, nonfinite)), gradient = value_and_gradient(state.components)
    components, optimizer_state, norm = optimizer.step(gradient, state.optimizer, state.components)
    last_active = jnp.where(counts > 0, state.step, state.last_active)
    metrics = {f"loss/{name}": value for name, value in terms.items()}
    metrics |= {
        "loss/total": loss,
        "gradient_norm": norm,
        "active_components": active,
        "dead_components": jnp.sum(state.step - last_active >= DEAD_AFTER),
        NONFINITE_SCORES: nonfinite,
    }
    state = state._replace(
        step=state.step + 1,
        components=components,
        optimizer=optimizer_state,
        last_active=last_active,
    )
    return state, metrics
