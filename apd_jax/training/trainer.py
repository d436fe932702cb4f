"""The training of components, as the loop runs it: first states, the step, rounds in between.

Letters: B batch, C components, S seeds side by side.
"""

import jax

from apd_jax import randomness
from apd_jax.components import Components, init_components, normalise_reads
from apd_jax.data import SampleBatch, Source, as_source
from apd_jax.objective.normalisation import scales
from apd_jax.runtime import loop
from apd_jax.sites import Target
from apd_jax.training.config import Settings
from apd_jax.training.initialisation import STARTS
from apd_jax.training.refine import rounds as refine
from apd_jax.training.step import TrainState, init_state, train_step

_SCALE_EXAMPLES = 4096  # that relative losses are scaled on
_START_EXAMPLES = 8192


def init_states(
    settings: Settings,
    targets: Target,
    seeds: jax.Array,
    sample_batch: SampleBatch | None = None,
    init: Components | None = None,
) -> TrainState:
    """States before the first step, every leaf [S, ...].

    Args:
      settings: the hyperparameters.
      targets: S targets side by side (every leaf of the parameters [S, ...]).
      seeds: uint32 [S].
      sample_batch: inputs for starts from the weights and relative losses; needed for them alone.
      init: components to start from, the same for all seeds; drawn at random if None.
    """
    optimizer = settings.optimizer()

    def one(target, seed):
        components = init or init_components(
            randomness.stream(seed, "components"),
            target,
            num_components=settings.num_components,
            rank=settings.rank,
            scale=settings.init_scale,
            instances=settings.init_instances,
        )
        made = init is not None  # not drawn at random: terms of zero may be among them
        if settings.start in STARTS and not made:
            assert sample_batch is not None
            x = sample_batch(randomness.stream(seed, "start"), _START_EXAMPLES)
            components, made = STARTS[settings.start](target, x, components), True
        if settings.objective.unit_norm and made:
            components = refine.refill(components, randomness.stream(seed, "zero terms"), True)
        elif settings.objective.unit_norm:
            components = normalise_reads(components)
        state = init_state(components, optimizer)
        if settings.relative_losses:
            assert sample_batch is not None
            key = randomness.stream(seed, "loss scales")
            x = sample_batch(randomness.stream_of_step(key, "batch"), _SCALE_EXAMPLES)
            probes = randomness.stream_of_step(key, "attribution")
            state = state._replace(scales=scales(settings.objective, target, x, probes))
        if not settings.refine.rounds(settings.steps):
            return state
        return state._replace(refined=refine.init(components))

    return jax.jit(jax.vmap(one))(targets, seeds)


def make_step(settings: Settings, data: SampleBatch | Source) -> loop.StepFn:
    """The step function for `loop.run_steps`; its context is the target, and what data feed."""
    rate = settings.rate()
    optimizer = settings.optimizer()
    source = as_source(data)

    def step(context, state: TrainState, key: jax.Array):
        target, fed = context if source.feeds else (context, None)
        batch_key = randomness.stream_of_step(key, "batch")
        x = source.batch(fed, state.step, batch_key, settings.batch_size)
        metrics = {"learning_rate": rate(state.step)}
        with jax.default_matmul_precision(settings.objective.routes.matmul_precision):
            state, measured = train_step(
                settings.objective,
                optimizer,
                target,
                state,
                x,
                randomness.stream_of_step(key, "attribution"),
                settings.factors(state),
            )
        if state.refined is not None:
            metrics |= {f"refine/{name}": n for name, n in state.refined.counts.items()}
        return state, metrics | measured

    return step


def make_between(settings: Settings, sample_batch: SampleBatch) -> loop.Between | None:
    """The rounds of refinement for `loop.run_steps`, if there are any.

    One look follows the last round, to undo it if it did not pay.
    """
    rounds = settings.refine.rounds(settings.steps)
    if not rounds:
        return None
    function = refine.make_round(
        settings.objective, settings.refine, settings.steps, sample_batch, settings.factors
    )
    spacing = settings.refine.spacing(settings.steps)
    return loop.Between(spacing, (rounds + 1) * spacing, function)


def moves_of(state: TrainState) -> dict[str, int]:
    """How often each move was made in a training, by name; empty without rounds."""
    counts = {} if state.refined is None else state.refined.counts
    return {name: int(count) for name, count in counts.items()}
