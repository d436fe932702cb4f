"""Decompose a network: its checks, and the run of its training.

Letters: B batch, C components.
"""

import dataclasses
import os
from typing import Any, Literal

import jax
import jax.numpy as jnp

from apd_jax.components import Components
from apd_jax.config_fields import check_whole, from_mapping
from apd_jax.data import Data, Source, as_source
from apd_jax.decomposition import auto_topk, function_claims, own
from apd_jax.decomposition.checks import check_positions, check_seed, check_start, check_target
from apd_jax.decomposition.result import Decomposition
from apd_jax.jax_settings import own_settings
from apd_jax.runtime import loop
from apd_jax.runtime.preemption import StopFlag, catch_signals
from apd_jax.sites import PyTree, Target
from apd_jax.training.config import Settings
from apd_jax.training.presets import ROBUST
from apd_jax.training.restarts import best, spread
from apd_jax.training.trainer import init_states, make_between, make_step, moves_of


class _Quiet(loop.Observer):
    """May ask for a stop as another observer does, and hears of nothing."""

    def __init__(self, observer: loop.Observer):
        self.should_stop = observer.should_stop


@dataclasses.dataclass(frozen=True)
class _Job:
    """What was asked for; fields are arguments of `decompose`, `example` a few inputs."""

    target: Target
    source: Source
    example: PyTree
    settings: Settings
    seed: int
    restarts: int
    init: Components | None
    chunk_steps: int
    observer: loop.Observer
    pilots: tuple[auto_topk.Pilot, ...] = ()

    def examples(self, count: int) -> PyTree:
        return self.source.examples(self.seed, count)

    @property
    def _seeds(self) -> jax.Array:
        return jnp.array([self.seed], jnp.uint32)

    def check(self) -> None:
        """Refuse what can't be decomposed, before any training."""
        check_target(self.target, self.example, self.settings.objective)
        check_positions(self.target, self.example, self.settings)
        check_start(self.target, self.init, self.settings)
        self.source.check(self.settings.batch_size)

    def work(self) -> own.Work:
        """The training of all initialisations."""
        settings, source, draw = self.settings, self.source, self.source.draw(self.seed)
        targets, seeds = spread(loop.stack([self.target]), self._seeds, self.restarts)
        return own.Work(
            make_state=lambda: init_states(settings, targets, seeds, draw, self.init),
            make_step=lambda: make_step(settings, source),
            make_between=lambda: make_between(settings, draw),
            context=targets,
            seeds=seeds,
            steps=settings.steps,
            chunk_steps=self.chunk_steps,
            feed=source.feed if source.feeds else None,
            observer=self.observer,
        )

    def found(self, outcome: own.Outcome) -> Decomposition:
        """The initialisation of least loss."""
        draw, targets = self.source.draw(self.seed), loop.stack([self.target])
        targets, _ = spread(targets, self._seeds, self.restarts)
        (place,), (losses,) = best(self.settings, targets, outcome.state, self._seeds, draw)
        state = loop.pick(outcome.state, int(place))
        return Decomposition(
            self.target,
            state.components,
            self.settings,
            outcome.history(int(place)),
            self.example,
            losses.tolist(),
            moves_of(state),
            self.pilots,
        )

    def with_k(
        self, flag: StopFlag, search: auto_topk.Search
    ) -> tuple["_Job", Decomposition | None]:
        """The same with the k that is enough, and a short training in its place after a stop."""

        def train(topk: float) -> Decomposition:
            settings = auto_topk.shorter(self.settings, topk)
            short = {"settings": settings, "restarts": 1, "observer": _Quiet(self.observer)}
            job = dataclasses.replace(self, source=self.source.again(), **short)
            return job.found(own.run(job.work(), flag))

        def stop() -> bool:
            return flag.requested or self.observer.should_stop()

        stopped = auto_topk.find(search, self.settings, train, self.examples(own.EXAMPLES), stop)
        if search.topk is None:
            return self, stopped
        settings = auto_topk.with_k(self.settings, search.topk)
        return dataclasses.replace(self, settings=settings, pilots=tuple(search.pilots)), None


@own_settings()
def decompose(
    target: Target,
    data: Data,
    *,
    num_components: int,
    topk: float | Literal["auto"] | None,
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
      topk: active components per example on average (batch top-k); `"auto"` looks for it by short
        trainings (`auto_topk`), of which one that is stopped is handed back; None for the Lp
        objective.
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
    check_whole(num_components=num_components, restarts=restarts)
    check_whole(chunk_steps=chunk_steps, checkpoint_every=checkpoint_every)
    init = init.components if isinstance(init, Decomposition) else init
    auto = topk == auto_topk.AUTO
    k = 1.0 if auto else topk  # any, until the one to take is found
    source = as_source(data, seed)
    given = {"num_components": num_components, "topk": k} | source.sizes() | options
    settings = from_mapping(ROBUST, given)
    example, observer = source.examples(seed, 3), observer or loop.Observer()
    job = _Job(target, source, example, settings, seed, restarts, init, chunk_steps, observer)
    job.check()
    if auto:
        auto_topk.check(settings)
        source.again()

    with catch_signals() as flag:
        if workdir is None:
            stopped = None
            if auto:
                job, stopped = job.with_k(flag, auto_topk.Search())
            return stopped or job.found(own.run(job.work(), flag))
        described = {"seed": seed, "data": source.describe(), "restarts": restarts}
        described |= {"chunk_steps": chunk_steps, "checkpoint_every": checkpoint_every}
        described |= {"topk": topk} if auto else {}
        config = own.config_of(settings, target, init, **described)
        with own.directory(workdir, config) as place:
            function_claims.claim(
                place,
                target,
                settings.objective,
                source,
                seed=seed,
                batch_size=settings.batch_size,
            )
            if auto:
                job, stopped = job.with_k(flag, auto_topk.read(place))
                if stopped:
                    return stopped
            outcome = own.run_in(place, job.work(), config, flag)
            found = job.found(outcome)
            if outcome.done == settings.steps:
                own.publish(place, found, job.examples(own.EXAMPLES))
            return found
