"""Gates before and after the training: on some examples, k components are active on average.

Letters: S decompositions, n restarts of each.
"""

import jax
from absl import logging

from apd_jax import blocks, randomness
from apd_jax.components import Components
from apd_jax.data import SampleBatch
from apd_jax.objective import gates
from apd_jax.runtime.outcome import of_callback
from apd_jax.sites import PyTree, Target
from apd_jax.training.config import Settings
from apd_jax.training.step import TrainState

_EXAMPLES = 512  # inputs on which gates start as top-k, and on which they keep k in the end


def with_gates(
    settings: Settings,
    target: Target,
    components: Components,
    seed: jax.Array,
    sample_batch: SampleBatch,
) -> Components:
    """Give components gates that open as batch-wide top-k, if the settings ask for gates.

    Args:
      settings: the hyperparameters.
      target: the network.
      components: `{site: Factors}`. Gates that they already have are kept, or dropped if the
        settings have another selection.
      seed: the seed of the training.
      sample_batch: draws the examples.
    """
    if settings.objective.selection != "gates":
        return dict(components)
    x = _examples(settings, seed, sample_batch)
    return gates.start(settings.objective, target, x, components, settings.batch_size)


def with_limits(
    settings: Settings,
    targets: Target,
    states: TrainState,
    seeds: jax.Array,
    sample_batch: SampleBatch,
) -> TrainState:
    """Limit trained gates to k active components on average (`gates.limited`).

    Where no examples can be drawn any more, they stay as they are, with a warning.

    Args:
      settings: the hyperparameters.
      targets, states: those of all trainings, every leaf [n·S, ...].
      seeds: uint32 [n·S].
      sample_batch: draws the examples.
    """
    objective = settings.objective_at_end

    def one(arguments):
        target, components, seed = arguments
        x = _examples(settings, seed, sample_batch)
        return gates.limited(objective, target, x, components, settings.batch_size)

    try:
        found = jax.jit(lambda *a: jax.lax.map(one, a))(targets, states.components, seeds)
        return states._replace(components=jax.block_until_ready(found))
    except Exception as error:
        text = of_callback(error)
        if text is None:
            raise
        logging.warning(
            "The gates could not be limited to k open ones on average, since no examples can be "
            "drawn any more: %s",
            text,
        )
        return states


def _examples(settings: Settings, seed: jax.Array, sample_batch: SampleBatch) -> PyTree:
    count = blocks.affordable(_EXAMPLES, settings.batch_size)
    return sample_batch(randomness.stream(seed, "gates"), count)
