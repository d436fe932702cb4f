"""Decompose a network: its checks, the step for the loop, and the loop around it.

Letters: B batch, C components, S seeds side by side.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp

from apd_jax import loop, randomness, train_step
from apd_jax.ambient import own_settings
from apd_jax.checks import check_seed, check_start, check_target
from apd_jax.components import Components, init_components, move_lengths, normalise_reads
from apd_jax.data import Data, SampleBatch, Source, as_source
from apd_jax.decomposition import Decomposition
from apd_jax.fields import check_whole, from_mapping
from apd_jax.refine import rounds as refine
from apd_jax.restarts import final_losses, spread
from apd_jax.robust import ROBUST
from apd_jax.run import functions, own
from apd_jax.runtime.preemption import catch_signals
from apd_jax.scales import scales
from apd_jax.settings import Settings
from apd_jax.sites import Target
from apd_jax.starts import STARTS
from apd_jax.train_step import TrainState

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
    start = move_lengths(init) if init and settings.objective.unit_norm else init

    def one(target, seed):
        components = start or init_components(
            randomness.stream(seed, "components"),
            target,
            num_components=settings.num_components,
            rank=settings.rank,
            scale=settings.init_scale,
            instances=settings.init_instances,
        )
        if settings.start in STARTS and start is None:
            assert sample_batch is not None
            x = sample_batch(randomness.stream(seed, "start"), _START_EXAMPLES)
            components = STARTS[settings.start](target, x, components)
        if settings.objective.unit_norm:
            components = normalise_reads(components)
        state = train_step.init_state(components, optimizer)
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
            state, measured = train_step.train_step(
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
    rounds, every = settings.refine.rounds(settings.steps), settings.refine.every
    if not rounds:
        return None
    function = refine.make_round(
        settings.objective, settings.refine, settings.steps, sample_batch, settings.factors
    )
    return loop.Between(every, (rounds + 1) * every, function)


def moves_of(state: TrainState) -> dict[str, int]:
    """How often each move was made in a training, by name; empty without rounds."""
    counts = {} if state.refined is None else state.refined.counts
    return {name: int(count) for name, count in counts.items()}


@own_settings()
def decompose(
    target: Target,
    data: Data,
    *,
    num_components: int,
    topk: float | None,
    seed: int = 0,
    restarts: int = 1,
    init: Components | Decomposition | None = None,
    workdir: str | os.PathLike[str] | None = None,
    chunk_steps: int = 100,
    checkpoint_every: int = 1000,
    observer: loop.Observer | None = None,
    **options: Any,
) -> Decomposition:
    """Decompose the sites of a network into parameter components.

    A bar shows how far it is. Ctrl-C ends it after the running chunk of steps and hands back what
    is done by then. With a `workdir` the same call goes on from there, after a stop or a crash;
    the directory gets checkpoints/, metrics.jsonl and, at the end, components/ and report.html.

    Args:
      target: the network and its sites.
      data: a sampling function `(key, batch_size) -> x [B, ...]`, traced by JAX; an array or a
        dict, tuple or other pytree of arrays [N, ...], taken in shuffled epochs; or an iterable of
        batches (a list, a data loader, a generator), one a step.
      num_components: C.
      topk: active components per example on average (batch top-k); None for the Lp objective.
      seed: root of all randomness, in [0, 2**32).
      restarts: initialisations side by side; the one of least loss stays.
      init: components to go on from, or another decomposition that has them.
      workdir: directory of this decomposition, new or its own.
      chunk_steps: steps between two looks of the host.
      checkpoint_every: steps between two checkpoints in the workdir.
      observer: told of metrics and saves (`loop.Observer`).
      **options: any further field of `Settings` and its parts, such as `steps`, `batch_size`,
        `learning_rate`, `coefficients`, `rank`, `schatten_p`, `hidden_sites`, `unit_norm`,
        `metric`, `minimality_loss`. What is not given is as in `robust.ROBUST`, where losses and
        the learning rate are relative to those of the network; the paper's are in configs/.

    Returns:
      The `Decomposition`.

    Raises:
      UserError: a setting out of its range, an unknown site, data or a network that can't be used,
        a directory of something else: of other settings, another network, another sampling
        function, metric or minimality_loss; before any training.
      loop.Diverged: a loss stopped being finite.
    """
    check_seed(seed)
    init = init.components if isinstance(init, Decomposition) else init
    check_whole(restarts=restarts, chunk_steps=chunk_steps, checkpoint_every=checkpoint_every)
    source = as_source(data, seed)
    given = {"num_components": num_components, "topk": topk} | source.sizes() | options
    settings = from_mapping(ROBUST, given)
    example = source.examples(seed, 3)
    check_target(target, example, settings.objective)
    check_start(target, init, settings)
    source.check(settings.batch_size)
    seeds, draw = jnp.array([seed], jnp.uint32), source.draw(seed)
    targets, all_seeds = spread(loop.stack([target]), seeds, restarts)
    work = own.Work(
        make_state=lambda: init_states(settings, targets, all_seeds, draw, init),
        make_step=lambda: make_step(settings, source),
        make_between=lambda: make_between(settings, draw),
        context=targets,
        seeds=all_seeds,
        steps=settings.steps,
        chunk_steps=chunk_steps,
        feed=source.feed if source.feeds else None,
        observer=observer or loop.Observer(),
    )

    def found(outcome: own.Outcome) -> Decomposition:
        losses = final_losses(settings, targets, outcome.state, seeds, draw)
        best = int(jnp.argmin(losses))
        state = loop.pick(outcome.state, best)
        return Decomposition(
            target,
            state.components,
            settings,
            outcome.history(best),
            example,
            losses.tolist(),
            moves_of(state),
        )

    with catch_signals() as flag:
        if workdir is None:
            return found(own.run(work, flag))
        counts = {"chunk_steps": chunk_steps, "checkpoint_every": checkpoint_every}
        counts |= {"restarts": restarts}
        described = {"seed": seed, "data": source.describe()} | counts
        config = own.config_of(settings, target, init, **described)
        with own.directory(workdir, config) as place:
            functions.claim(
                place,
                target,
                settings.objective,
                source,
                seed=seed,
                batch_size=settings.batch_size,
            )
            outcome = own.run_in(place, work, config, flag)
            result = found(outcome)
            if outcome.done == settings.steps:
                own.publish(place, result, source.examples(seed, own.EXAMPLES))
            return result
