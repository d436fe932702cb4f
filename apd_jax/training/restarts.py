"""Several restarts of each decomposition side by side; the one with the least loss is chosen.

Letters: S decompositions, n restarts of each.
"""

from typing import Any

import jax
import jax.numpy as jnp

from apd_jax import blocks, randomness
from apd_jax.data import SampleBatch
from apd_jax.sites import Target
from apd_jax.training.config import Settings
from apd_jax.training.mean_loss import mean_loss

_EXAMPLES = 4096  # inputs that losses are compared on


def spread(targets: Target, seeds: jax.Array, restarts: int) -> tuple[Target, jax.Array]:
    """Repeat targets and seeds for all restarts, [n·S], those of one decomposition S places apart.

    The first restart of each decomposition has its own seed, the others have the seeds that follow
    the S seeds.
    """
    if restarts == 1:
        return targets, seeds
    repeated = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * restarts), targets)
    return repeated, seeds[0] + jnp.arange(restarts * len(seeds), dtype=jnp.uint32)


def best(
    settings: Settings,
    targets: Target,
    states: Any,
    seeds: jax.Array,
    sample_batch: SampleBatch,
) -> tuple[jax.Array, jax.Array]:
    """Find the restart of each decomposition with the least total loss, on the same inputs.

    Args:
      settings: the hyperparameters.
      targets, states: those of all restarts, every leaf [n·S, ...].
      seeds: uint32 [S], the seeds of the decompositions.
      sample_batch: draws the inputs.

    Returns:
      The places [S] of the best, and the losses of all [S, n], infinite where one is not finite;
      [S, 0] if there is no choice.
    """
    objective, size = settings.objective, len(seeds)
    if len(states.step) == size:
        return jnp.arange(size), jnp.zeros((size, 0))

    count = blocks.affordable(_EXAMPLES, settings.batch_size)

    def one(arguments):
        target, state, seed = arguments
        key = randomness.stream(seed, "restarts")
        x = sample_batch(randomness.stream_of_step(key, "batch"), count)
        probes = randomness.stream_of_step(key, "attribution")
        multipliers, size = settings.multipliers(state), settings.batch_size
        return mean_loss(objective, target, state.components, x, probes, multipliers, size)

    repeated = jnp.tile(seeds, len(states.step) // size)
    losses = jax.jit(lambda *a: jax.lax.map(one, a))(targets, states, repeated)
    losses = jnp.where(jnp.isfinite(losses), losses, jnp.inf)  # NaN would be the least
    table = losses.reshape(-1, size).T
    return jnp.argmin(table, axis=1) * size + jnp.arange(size), table
