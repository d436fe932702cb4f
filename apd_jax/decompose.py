"""Decompose a network: settings, the step for the loop, and the result.

Letters: B batch, C components, S seeds side by side.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from apd_jax import attributions, forward, loop, optimizers, sites, train_step
from apd_jax.components import Components, Factors, init_components
from apd_jax.runtime import export
from apd_jax.sites import Target
from apd_jax.train_step import Coefficients, Objective, TrainState

SampleBatch = Callable[[jax.Array, int], jax.Array]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every hyperparameter of a decomposition.

    Attributes:
      objective: loss terms, selection and routes.
      num_components: C.
      steps: optimiser steps.
      batch_size: B.
      learning_rate: peak learning rate of Adam.
      rank: m of every site; `min(d_in, d_out)` if None.
      schedule, warmup_fraction, halflife: see `optimizers.learning_rate_schedule`.
      init_scale, init_instances: see `components.init_components`.
    """

    objective: Objective
    num_components: int
    steps: int
    batch_size: int
    learning_rate: float
    rank: int | None = None
    schedule: optimizers.Schedule = "cosine"
    warmup_fraction: float = 0.01
    halflife: float | None = None
    init_scale: float = 1.0
    init_instances: int = 1

    def __post_init__(self):
        for name in ("num_components", "batch_size", "init_instances"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank must be at least 1 (or None for full rank), got {self.rank}")
        if not self.init_scale > 0:
            raise ValueError(f"init_scale must be positive, got {self.init_scale}")
        self.rate()
        self.objective.check_sizes(self.batch_size, self.num_components)

    def rate(self) -> optax.Schedule:
        """The learning-rate schedule."""
        return optimizers.learning_rate_schedule(
            self.learning_rate,
            steps=self.steps,
            schedule=self.schedule,
            warmup_fraction=self.warmup_fraction,
            halflife=self.halflife,
        )


def init_states(settings: Settings, targets: Target, seeds: jax.Array) -> TrainState:
    """States before the first step, every leaf [S, ...].

    Args:
      settings: the hyperparameters.
      targets: S targets side by side (every leaf of the parameters [S, ...]).
      seeds: uint32 [S].
    """
    optimizer = optimizers.adam(settings.rate())

    def one(target, seed):
        components = init_components(
            jax.random.fold_in(jax.random.key(seed), 2**31 + 2),
            target,
            num_components=settings.num_components,
            rank=settings.rank,
            scale=settings.init_scale,
            instances=settings.init_instances,
        )
        return train_step.init_state(components, optimizer)

    return jax.jit(jax.vmap(one))(targets, seeds)


def make_step(settings: Settings, sample_batch: SampleBatch) -> loop.StepFn:
    """The step function for `loop.run_steps`; its context is the target."""
    rate = settings.rate()
    optimizer = optimizers.adam(rate)

    def step(target: Target, state: TrainState, key: jax.Array):
        x = sample_batch(jax.random.fold_in(key, 1), settings.batch_size)
        metrics = {"learning_rate": rate(state.step)}
        state, measured = train_step.train_step(settings.objective, optimizer, target, state, x)
        return state, metrics | measured

    return step


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """A decomposed network.

    Attributes:
      target: the network.
      components: `{site: Factors}`.
      settings: how it was decomposed.
      history: metrics at the end of every chunk, `[{"step": t, name: value}]`.
    """

    target: Target
    components: Components
    settings: Settings
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def attributions(self, x: jax.Array) -> jax.Array:
        """Attributions A_c(x) [B, C], from the model that the decomposition was trained with."""
        return attributions.gradient_attributions(
            self.target, self.components, x, source=self.settings.objective.attribution_source
        )

    def mask(self, x: jax.Array) -> jax.Array:
        """The active components on a batch, [B, C] bool, by the rule of the training."""
        scores = self.attributions(x)
        if self.settings.objective.topk is None and self.settings.objective.selection != "exact":
            return jnp.ones(scores.shape, bool)
        return train_step.select(self.settings.objective, scores, x).mask

    def __call__(self, x: jax.Array) -> jax.Array:
        """Output with the active components alone, `f(x, κ(x))`, [B, O]."""
        return forward.masked_apply(self.target, self.components, x, self.mask(x))

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write components, the target's parameters and the settings; `load` reads them.

        The directory also gets `components.safetensors` and `config.json`, for other programs.

        Args:
          directory: new, empty, or saved to before.

        Raises:
          ValueError: it holds other files.
          runtime.checkpoint.CheckpointError: it can't be written; what was there before stays.
        """
        config = {
            "settings": dataclasses.asdict(self.settings),
            "sites": dict(self.target.paths),
            "history": self.history,
        }
        export.save_components(directory, self.components, self.target.params, config)


def load(
    directory: str | os.PathLike[str],
    network: nn.Module | Callable[[Any, jax.Array], jax.Array],
) -> Decomposition:
    """Read what `Decomposition.save` wrote.

    Args:
      directory: the saved decomposition.
      network: the network itself, which is code and not saved: the Flax module, or the function
        `(params, x) -> output`.

    Raises:
      runtime.checkpoint.CheckpointError: nothing whole is there.
    """
    factors, params, config = export.load_components(directory)
    saved = dict(config["settings"])
    objective = dict(saved.pop("objective"))
    coefficients = Coefficients(**objective.pop("coefficients"))
    hidden_sites = tuple(objective.pop("hidden_sites"))
    settings = Settings(
        objective=Objective(coefficients=coefficients, hidden_sites=hidden_sites, **objective),
        **saved,
    )
    sites_of = config["sites"]
    if isinstance(network, nn.Module):
        target = Target.from_flax(network, {"params": params}, sites_of)
    else:
        target = Target(network, params, sites_of)
    components = {site: Factors.from_uv(f["U"], f["V"]) for site, f in factors.items()}
    return Decomposition(
        target, {site: components[site] for site in sites_of}, settings, config["history"]
    )


def decompose(
    target: Target,
    sample_batch: SampleBatch,
    *,
    num_components: int,
    topk: float | None,
    steps: int = 10_000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    coefficients: Coefficients | None = None,
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
      steps: optimiser steps.
      batch_size: B.
      learning_rate: peak learning rate of Adam.
      coefficients: weights of the loss terms; faithfulness, minimality and simplicity 1 if None.
      seed: root of all randomness.
      chunk_steps: steps between two looks of the host.
      observer: told of metrics and saves (`loop.Observer`).
      **options: any further field of `Settings` or `Objective`, such as `rank`, `schatten_p`,
        `hidden_sites`, `unit_norm`, `attribution_source`.

    Returns:
      The `Decomposition`.

    Raises:
      ValueError: a setting out of its range, an unknown site; before any training.
      loop.Diverged: a loss stopped being finite.
    """
    if coefficients is None:
        coefficients = Coefficients(faithfulness=1.0, minimality=1.0, simplicity=1.0)
    fields = {field.name for field in dataclasses.fields(Objective)}
    objective = Objective(
        coefficients=coefficients,
        topk=topk,
        **{name: value for name, value in options.items() if name in fields},
    )
    settings = Settings(
        objective=objective,
        num_components=num_components,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        **{name: value for name, value in options.items() if name not in fields},
    )
    check_target(target, sample_batch, settings)
    recorder = _Recorder(observer or loop.Observer())
    targets = loop.stack([target])
    seeds = jnp.array([seed], jnp.uint32)
    state = loop.run_steps(
        make_step(settings, sample_batch),
        targets,
        init_states(settings, targets, seeds),
        seeds,
        steps=steps,
        chunk_steps=chunk_steps,
        observer=recorder,
    )
    components = train_step.current_components(settings.objective, loop.pick(state, 0))
    return Decomposition(target, components, settings, recorder.history)


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


def check_target(target: Target, sample_batch: SampleBatch, settings: Settings) -> None:
    """Run the network once as the decomposition will, so that mistakes show before training.

    Raises:
      ValueError: a site that the network does not use, outputs that are not [B, O], a matrix that
        the network multiplies by and that differs from the one its parameters hold, unknown
        hidden sites.
    """
    unknown = [name for name in settings.objective.hidden_sites if name not in target.sites]
    if unknown:
        raise ValueError(f"hidden_sites {unknown} are no sites; the target has {target.sites}")

    @jax.jit
    def used(network: Target, key: jax.Array):
        x = sample_batch(key, 2)
        seen: dict[str, jax.Array] = {}

        def operation(call: sites.SiteCall):
            seen[call.name] = call.weight
            return sites.as_is(call)

        outputs, _ = sites.run(network, x, operation)
        same = {name: jnp.all(seen[name] == weight) for name, weight in network.weights.items()}
        return outputs, same

    outputs, same = used(target, jax.random.key(0))
    if outputs.ndim != 2:
        raise ValueError(f"the network must give [B, O] outputs, got {outputs.shape}")
    changed = [name for name, equal in same.items() if not equal]
    if changed:
        raise ValueError(
            f"the network multiplies by matrices other than those that params hold at {changed}; "
            "pass the parameter itself to linear(), or name the path of the one used"
        )
