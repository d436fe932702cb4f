"""Decompose a network: its checks, the step for the loop, and the loop around it.

Letters: B batch, C components, S seeds side by side.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import loop, randomness, train_step
from apd_jax.ambient import own_settings
from apd_jax.checks import check_target
from apd_jax.components import init_components, normalise_reads
from apd_jax.decomposition import Decomposition
from apd_jax.errors import UserError
from apd_jax.fields import from_mapping
from apd_jax.parting import part_target
from apd_jax.settings import Settings
from apd_jax.sites import Target
from apd_jax.train_step import TrainState

SampleBatch = Callable[[jax.Array, int], jax.Array]
_START_EXAMPLES = 8192


def init_states(
    settings: Settings,
    targets: Target,
    seeds: jax.Array,
    sample_batch: SampleBatch | None = None,
) -> TrainState:
    """States before the first step, every leaf [S, ...].

    Args:
      settings: the hyperparameters.
      targets: S targets side by side (every leaf of the parameters [S, ...]).
      seeds: uint32 [S].
      sample_batch: inputs that a parted start looks at; needed for it alone.
    """
    optimizer = settings.optimizer()

    def one(target, seed):
        components = init_components(
            randomness.stream(seed, "components"),
            target,
            num_components=settings.num_components,
            rank=settings.rank,
            scale=settings.init_scale,
            instances=settings.init_instances,
        )
        if settings.start == "parted":
            assert sample_batch is not None
            x = sample_batch(randomness.stream(seed, "start"), _START_EXAMPLES)
            components = part_target(target, x, components)
        if settings.objective.unit_norm:
            components = normalise_reads(components)
        return train_step.init_state(components, optimizer)

    return jax.jit(jax.vmap(one))(targets, seeds)


def make_step(settings: Settings, sample_batch: SampleBatch) -> loop.StepFn:
    """The step function for `loop.run_steps`; its context is the target."""
    rate = settings.rate()
    optimizer = settings.optimizer()

    def step(target: Target, state: TrainState, key: jax.Array):
        x = sample_batch(randomness.stream_of_step(key, "batch"), settings.batch_size)
        metrics = {"learning_rate": rate(state.step)}
        with jax.default_matmul_precision(settings.objective.routes.matmul_precision):
            state, measured = train_step.train_step(
                settings.objective,
                optimizer,
                target,
                state,
                x,
                randomness.stream_of_step(key, "attribution"),
            )
        return state, metrics | measured

    return step


@own_settings()
def decompose(
    target: Target,
    sample_batch: SampleBatch,
    *,
    num_components: int,
    topk: float | None,
    seed: int = 0,
    chunk_steps: int = 100,
    observer: loop.Observer | None = None,
    **options: Any,
) -> Decomposition:
    """Decompose the sites of a network into parameter components.

    Args:
      target: the network and its sites.
      sample_batch: `(key, batch_size) -> x [B, ...]`, traced by JAX.
      num_components: C.
      topk: active components per example on average (batch top-k); None for the Lp objective.
      seed: root of all randomness.
      chunk_steps: steps between two looks of the host.
      observer: told of metrics and saves (`loop.Observer`).
      **options: any further field of `Settings` and its parts, such as `steps`, `batch_size`,
        `learning_rate`, `coefficients` (by default 1 for faithfulness, minimality and simplicity),
        `rank`, `schatten_p`, `hidden_sites`, `unit_norm`.

    Returns:
      The `Decomposition`.

    Raises:
      UserError: a setting out of its range, an unknown site; before any training.
      loop.Diverged: a loss stopped being finite.
    """
    settings = from_mapping(Settings(), {"num_components": num_components, "topk": topk} | options)
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be in [0, 2**32), got {seed}")
    check_target(target, sample_batch(randomness.root(seed), 3), settings.objective)
    recorder = _Recorder(observer or loop.Observer())
    targets = loop.stack([target])
    seeds = jnp.array([seed], jnp.uint32)
    state = loop.run_steps(
        make_step(settings, sample_batch),
        targets,
        init_states(settings, targets, seeds, sample_batch),
        seeds,
        steps=settings.steps,
        chunk_steps=chunk_steps,
        observer=recorder,
    )
    return Decomposition(target, loop.pick(state.components, 0), settings, recorder.history)


class _Recorder(loop.Observer):
    """Keeps the metrics of a single run, and passes everything on."""

    def __init__(self, observer: loop.Observer):
        self.history: list[dict[str, float]] = []
        self.observer = observer
        self.save, self.should_stop = observer.save, observer.should_stop

    def on_metrics(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        row = {name: float(value[0]) for name, value in metrics.items()}
        self.history.append({"step": step, **row})
        self.observer.on_metrics(step, metrics)
