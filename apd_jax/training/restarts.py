"""Several initialisations of a decomposition side by side; the one of least loss stays.

Letters: S decompositions, n initialisations of each.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from apd_jax import randomness
from apd_jax.sites import PyTree, Target
from apd_jax.training.config import Settings

_EXAMPLES = 4096  # that losses are compared on


def spread(targets: Target, seeds: jax.Array, restarts: int) -> tuple[Target, jax.Array]:
    """Targets and seeds of all initialisations, [n·S], those of one decomposition S places apart.

    The first of each decomposition has its own seed, the others those above the S seeds.
    """
    repeated = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * restarts), targets)
    return repeated, seeds[0] + jnp.arange(restarts * len(seeds), dtype=jnp.uint32)


def best(
    settings: Settings,
    targets: Target,
    states: Any,
    seeds: jax.Array,
    sample_batch: Callable[[jax.Array, int], PyTree],
) -> tuple[jax.Array, jax.Array]:
    """Which initialisation of each decomposition has the least total loss, on the same inputs.

    Args:
      settings: the hyperparameters.
      targets, states: of all initialisations, every leaf [n·S, ...].
      seeds: uint32 [S], of the decompositions.
      sample_batch: gives the inputs.

    Returns:
      The places [S] of the best, and the losses of all [S, n]; without choice none, [S, 0].
    """
    objective, size = settings.objective, len(seeds)
    if len(states.step) == size:
        return jnp.arange(size), jnp.zeros((size, 0))

    def one(arguments):
        target, state, seed = arguments
        key = randomness.stream(seed, "restarts")
        x = sample_batch(randomness.stream_of_step(key, "batch"), _EXAMPLES)
        probes, factors = randomness.stream_of_step(key, "attribution"), settings.factors(state)
        components = state.components
        terms, _ = objective.terms(target, components, x, probes, factors)
        return objective.total(terms, factors)

    repeated = jnp.tile(seeds, len(states.step) // size)
    losses = jax.jit(lambda *a: jax.lax.map(one, a))(targets, states, repeated)
    table = losses.reshape(-1, size).T
    return jnp.argmin(table, axis=1) * size + jnp.arange(size), table
