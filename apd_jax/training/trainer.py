"""The training of components: states, steps, rounds in between, and the best of several restarts.

Letters: S targets side by side, n restarts of each, B batch, C components.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from apd_jax import blocks, randomness
from apd_jax.components import Components, init_components
from apd_jax.data import Beside, Reader, SampleBatch, Source, as_source
from apd_jax.objective.normalisation import scales
from apd_jax.programs import partition
from apd_jax.runtime import loop, mesh, step_programs
from apd_jax.runtime.checkpoint import to_host
from apd_jax.runtime.outcome import of_callback
from apd_jax.sites import PyTree, Target
from apd_jax.training import eigenbasis, gate_limits
from apd_jax.training.config import Settings
from apd_jax.training.initialisation import STARTS
from apd_jax.training.optimizers import Optimizer
from apd_jax.training.refine import rounds as refine
from apd_jax.training.restarts import best, spread
from apd_jax.training.step import TrainState, init_state, train_step
from apd_jax.training.unit_norm import normalise_reads

_SCALE_EXAMPLES = 4096  # inputs that the scales of relative losses are measured on
_START_EXAMPLES = 8192  # inputs that starts from the target's weights are made of
_BASIS_EXAMPLES, _BASIS_BLOCKS = 1024, 64  # inputs that bases are found on, and blocks of a batch


class Result(NamedTuple):
    """The components of one target after training.

    Attributes:
      components: `{site: Factors}`, those of the restart with the least loss.
      place: its place among the n·S trainings side by side.
      losses: final losses of all restarts; empty without a choice.
      moves: how often each move of refinement was made, `{name: number}`; empty without rounds.
      others: components of the other restarts, on the host; empty without a choice.
    """

    components: Components
    place: int
    losses: list[float]
    moves: dict[str, int]
    others: list[Components]


class Trainer:
    """A training of S targets, with n restarts of each, that `session.fit` runs.

    Attributes:
      settings: the hyperparameters.
      steps: number of optimiser steps.
      context: the targets of all n·S trainings, every leaf [n·S, ...].
      seeds: their seeds, uint32 [n·S].
      rate: the learning-rate schedule.
      optimizer: the optimiser.
      step: the step function `(context, state, key) -> (state, metrics)` for a single training.
      between: the rounds of refinement, if there are any.
      feed: what the data give to the next steps, if they are not drawn from a key.
      layout: how the arrays are divided over devices; None for a single device.
    """

    def __init__(
        self,
        settings: Settings,
        targets: Target,
        data: SampleBatch | Source,
        seeds: jax.Array,
        *,
        restarts: int = 1,
        init: Components | None = None,
        mesh_shape: Sequence[int] | None = None,
    ):
        """Build everything that the training needs; nothing is computed yet.

        Args:
          settings: the hyperparameters.
          targets: S targets side by side, every leaf of the parameters [S, ...].
          data: where batches come from.
          seeds: uint32 [S].
          restarts: n.
          init: components to start from, the same for all trainings; drawn at random if None.
          mesh_shape: see `mesh.layout`.
        """
        self.settings, self.steps = settings, settings.steps
        self._in_steps = settings = settings.with_largest_k()
        self._init, self._own_seeds = init, seeds
        self.context, self.seeds = spread(targets, seeds, restarts)
        self._source = source = as_source(data)
        self._reader = Reader(source, settings.batch_size, int(np.asarray(seeds)[0]))
        self.feed: loop.Feed | None = self._reader.pieces if source.feeds else None
        self.rate, self.optimizer = settings.rate(), settings.optimizer()
        self.step = make_step(settings, self.optimizer, self.rate, source)
        self.between = make_between(settings, source, self._reader)
        self.layout = layout_of(settings, len(self.seeds), mesh_shape)

    def init_state(self) -> TrainState:
        """Make the states before the first step, every leaf [n·S, ...]."""
        one = make_init(
            self._in_steps, self.optimizer, self._source, self._init, self.between is not None
        )
        reads_pool = self._in_steps.start in STARTS and self._init is None
        reads_pool |= self._in_steps.objective.selection == "gates"
        reads_pool |= self._in_steps.relative_losses or self._in_steps.eigenbasis
        pool = self._reader.pool(0) if reads_pool else None
        every = jax.vmap(one, in_axes=(0, 0, None))
        return step_programs.first_state(self.layout, every, self.context, self.seeds, pool)

    def results(self, state: TrainState) -> list[Result]:
        """Choose the best restart of each target.

        Args:
          state: the states of all trainings, every leaf [n·S, ...].
        """
        size = len(self._own_seeds)
        gated = self.settings.objective.selection == "gates"
        needs_data = gated or len(state.step) > size
        pool = self._reader.pool_at_end() if needs_data else None
        sample = functools.partial(self._source.sample, pool)
        if gated:
            state = gate_limits.with_limits(self.settings, self.context, state, self.seeds, sample)
        places, losses = self._best(state, sample)
        counts = {} if state.refined is None else state.refined.counts
        return [
            Result(
                loop.pick(state.components, place),
                place,
                of_restarts,
                {name: int(count[place]) for name, count in counts.items()},
                [
                    to_host(loop.pick(state.components, other))
                    for other in range(place % size, len(of_restarts) * size, size)
                    if other != place
                ],
            )
            for place, of_restarts in zip(places.tolist(), losses.tolist(), strict=True)
        ]

    def _best(self, state: TrainState, sample: SampleBatch) -> tuple[np.ndarray, np.ndarray]:
        """The places of the best restarts and all losses; the first where nothing can be drawn."""
        size = len(self._own_seeds)
        several = len(state.step) // size
        try:
            found = best(self._in_steps, self.context, state, self._own_seeds, sample)
            return jax.tree.map(np.asarray, found)
        except Exception as error:
            text = of_callback(error)
            if text is None:
                raise
            logging.warning("The first restart is returned: the others are not compared, %s", text)
            return np.arange(size), np.full((size, several), np.nan)


def layout_of(
    settings: Settings, num_seeds: int, mesh_shape: Sequence[int] | None = None
) -> mesh.Layout | None:
    """How a training is divided over devices.

    Args:
      settings: the hyperparameters.
      num_seeds: n·S, the number of trainings side by side.
      mesh_shape: see `mesh.layout`.

    Raises:
      UserError: see `mesh.layout`.
    """
    return mesh.layout(
        num_seeds,
        mesh_shape,
        batch_size=settings.batch_size // settings.accumulate,
        num_components=settings.num_components,
    )


def _wide(init: Components | None) -> Components | None:
    """Components to start from, in float32 if they are narrower, as rounding would lose steps."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), init)


def make_init(
    settings: Settings,
    optimizer: Optimizer,
    source: Source,
    init: Components | None,
    has_rounds: bool,
) -> Callable[[Target, jax.Array, PyTree], TrainState]:
    """The function `(target, seed, pool) -> state` that makes the first state of one training."""

    def examples(count: int) -> int:
        return blocks.affordable(count, settings.batch_size)

    def one(target: Target, seed: jax.Array, pool: PyTree) -> TrainState:
        sample = functools.partial(source.sample, pool)
        components = _wide(init) or init_components(
            randomness.stream(seed, "components"),
            target,
            num_components=settings.num_components,
            rank=settings.rank,
            scale=settings.init_scale,
            instances=settings.init_instances,
        )
        drawn = init is None
        if settings.start in STARTS and drawn:
            x = sample(randomness.stream(seed, "start"), examples(_START_EXAMPLES))
            make, drawn = STARTS[settings.start], False
            components = make(settings.objective, target, x, components, settings.batch_size)
        if settings.unit_norm and drawn:
            components = normalise_reads(components)
        elif settings.unit_norm:  # there may be zeros, which have no direction
            components = refine.refill(components, randomness.stream(seed, "zero terms"), True)
        components = gate_limits.with_gates(settings, target, components, seed, sample)
        bases = None
        if settings.eigenbasis:
            key = randomness.stream(seed, "eigenbasis")
            count = blocks.affordable(_BASIS_EXAMPLES, settings.batch_size, _BASIS_BLOCKS)
            x = sample(randomness.stream_of_step(key, "batch"), count)
            probes = randomness.stream_of_step(key, "attribution")
            bases = eigenbasis.find(settings.objective, target, x, probes, settings.batch_size)
        state = init_state(components, optimizer, bases)
        if settings.relative_losses:
            key = randomness.stream(seed, "loss scales")
            x = sample(randomness.stream_of_step(key, "batch"), examples(_SCALE_EXAMPLES))
            probes = randomness.stream_of_step(key, "attribution")
            units = scales(settings.objective, target, x, probes, settings.batch_size)
            state = state._replace(scales=units)
        return state._replace(refined=refine.init(components)) if has_rounds else state

    return one


# A plain function, and no method: compiled programs live as long as the function they are made of
# (`programs.compiled`), and a bound method is a new object at every access.
def make_step(
    settings: Settings, optimizer: Optimizer, rate: optax.Schedule, source: Source
) -> loop.StepFn:
    """The step function for `loop.run_steps`."""

    def step(context, state: TrainState, key: jax.Array):
        target, fed = context if source.feeds else (context, None)
        batch_key = randomness.stream_of_step(key, "batch")
        x = source.batch(fed, state.step, batch_key, settings.batch_size)
        x = partition.over_data(x)
        x, other = x if isinstance(source, Beside) else (x, None)
        metrics = {"learning_rate": rate(state.step)}
        with jax.default_matmul_precision(settings.matmul_precision):
            state, measured = train_step(
                settings.objective,
                optimizer,
                target,
                state,
                x,
                randomness.stream_of_step(key, "attribution"),
                settings.multipliers(state),
                settings.accumulate,
                other,
            )
        if state.refined is not None:
            metrics |= {f"refine/{name}": n for name, n in state.refined.counts.items()}
        state = partition.over_components(state, settings.num_components)
        return state, metrics | measured

    return step


def make_between(
    settings: Settings, source: Source, reader: Reader | None = None
) -> loop.Between | None:
    """The rounds of refinement, if there are any.

    After the last round there is one more call, which only takes that round back if the errors
    grew.
    """
    rounds = settings.refine.rounds(settings.steps)
    if not rounds:
        return None
    one_round = refine.make_round(settings)

    def function(context, state, key):
        target, fed = context if source.feeds else (context, None)
        return one_round(target, state, key, functools.partial(source.sample, fed))

    spacing = settings.refine.spacing(settings.steps)
    until = (rounds + 1) * spacing
    return loop.Between(spacing, until, function, reader.pool if reader and source.feeds else None)
