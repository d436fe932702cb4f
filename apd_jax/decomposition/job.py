"""A decomposition under way: the search for k, the training, and what a directory keeps of it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from apd_jax import blocks, sites
from apd_jax.components import Components
from apd_jax.config_fields import check_at_least, check_values
from apd_jax.config_fields.values import root_seed
from apd_jax.data import Beside, Source
from apd_jax.decomposition import auto_topk, directory, function_claims
from apd_jax.decomposition.result import Decomposition
from apd_jax.runtime import loop, metric_reader, preemption, session
from apd_jax.runtime.mesh import without_seeds
from apd_jax.runtime.outcome import Outcome, Stopped
from apd_jax.runtime.preemption import StopFlag
from apd_jax.runtime.stores import Keeping
from apd_jax.runtime.workdir import Workdir
from apd_jax.sites import PyTree, Target
from apd_jax.training.config import Settings
from apd_jax.training.trainer import Trainer

_EXAMPLES, _POSITIONS = 2048, 8192  # of the report and of the search for k, at most
_MOST_BLOCKS = 64  # most batches that these inputs may take
_OTHER_EXAMPLES = 256  # inputs of the other data, on which a summary measures the error


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """The numbers among the arguments of `decompose` that are no settings."""

    seed: int
    restarts: int
    chunk_steps: int
    checkpoint_every: int

    def __post_init__(self):
        check_values(self, skip=("seed",))
        object.__setattr__(self, "seed", root_seed(self.seed))
        check_at_least(self, 1, "restarts", "chunk_steps", "checkpoint_every")


@dataclasses.dataclass(frozen=True)
class Job:
    """The checked arguments of `decompose`; `example` is a few inputs."""

    target: Target
    source: Source
    example: PyTree
    run: RunOptions
    init: Components | None
    observer: loop.Observer
    flag: StopFlag
    mesh: Sequence[int] | None = None

    def decompose(
        self, settings: Settings, place: Workdir | None, config: dict[str, Any], *, search_k: bool
    ) -> Decomposition:
        """Find k if asked to, then train, and publish what is finished in its directory."""
        if place:
            function_claims.claim(
                place,
                self.target,
                settings.objective,
                self.source,
                seed=self.run.seed,
                batch_size=settings.batch_size,
            )
        pilots: tuple[auto_topk.Pilot, ...] = ()
        if search_k:
            search = auto_topk.Search() if place is None else auto_topk.read(place)
            settings = settings.with_topk(self.find_topk(settings, search))
            pilots = tuple(search.pilots)
        found = self.train(settings, place, config, pilots)
        if place:
            try:
                self.publish(place, found)
            except Exception as error:  # the directory takes no components, as on a full disk
                error.decomposition = found  # type: ignore[attr-defined]
                raise
        return found

    def publish(self, place: Workdir, found: Decomposition) -> None:
        """Write the components and the report, which Ctrl-C and SIGTERM stop."""
        settings, steps = found.settings, found.settings.steps
        every = settings.refine.spacing(steps)
        _, gap = metric_reader.read(
            place.metrics, steps=steps, chunk_steps=self.run.chunk_steps, every=every
        )
        if gap:
            logging.warning("%s", gap)
        # Each process stops for itself: where the report fails in one, the others don't wait.
        stopped = Stopped(steps, "report")
        with preemption.watch(lambda: self.flag.requested, stopped):
            directory.publish(
                place,
                found,
                lambda: self.examples(settings),
                trained_on=not self.source.fresh,
                gaps=[gap] if gap else [],
            )

    def examples(self, settings: Settings) -> PyTree:
        """Inputs [N, ...] of the report, and of the search for k: what these can wait for."""
        count = blocks.affordable(_EXAMPLES, settings.batch_size, _MOST_BLOCKS)
        x = self.source.examples(self.run.seed, count)
        if not settings.objective.per_position:
            return x
        length = math.prod(sites.position_shape(self.target, x))
        return jax.tree.map(lambda leaf: leaf[: max(8, _POSITIONS // length)], x)

    def find_topk(self, settings: Settings, search: auto_topk.Search) -> float:
        """Search for k with short trainings in memory, of one restart each."""
        quiet, run = auto_topk.Quiet(self.observer), dataclasses.replace(self.run, restarts=1)
        mesh = without_seeds(self.mesh, settings.batch_size // settings.accumulate)
        alone = dataclasses.replace(self, run=run, observer=quiet, mesh=mesh)

        def train(topk: float) -> Decomposition:
            short = dataclasses.replace(alone, source=self.source.again())
            return short.train(auto_topk.shorter(settings, topk))

        def stop() -> bool:
            return self.flag.asked(self.observer.should_stop())

        examples = self.examples(settings)
        return auto_topk.find(search, settings, train, examples, stop)

    def train(
        self,
        settings: Settings,
        place: Workdir | None = None,
        config: dict[str, Any] | None = None,
        pilots: tuple[auto_topk.Pilot, ...] = (),
    ) -> Decomposition:
        """Train all restarts; returns the one with the least loss.

        Raises:
          EndedEarly: its `decomposition` is the partial one, if there is any.
          Exception, SystemExit: what the observer raised, with such a `decomposition`.
        """
        seeds = jnp.array([self.run.seed], jnp.uint32)
        targets = loop.stack([self.target])
        trainer = Trainer(
            settings,
            targets,
            self.source,
            seeds,
            restarts=self.run.restarts,
            init=self.init,
            mesh_shape=self.mesh,
        )
        keeping = Keeping(self.run.chunk_steps, self.run.checkpoint_every, config=config or {})
        try:
            outcome = session.fit(
                trainer,
                place.path if place else None,
                name="decomposition",
                keeping=keeping,
                flag=self.flag,
                observer=self.observer,
            )
        except (Exception, SystemExit) as error:  # SystemExit of the observer
            if isinstance(error, Stopped):
                resume = "; call again to resume" if place else ""
                logging.warning("Stopped at step %d of %d%s.", error.step, settings.steps, resume)
            partial = getattr(error, "outcome", None)
            if isinstance(partial, Outcome):
                found = self.found(trainer, partial, pilots)
                error.decomposition = found  # type: ignore[union-attr]
            raise
        return self.found(trainer, outcome, pilots)

    def found(
        self, trainer: Trainer, outcome: Outcome, pilots: tuple[auto_topk.Pilot, ...]
    ) -> Decomposition:
        """The decomposition of the best restart."""
        (result,) = trainer.results(outcome.state)
        return Decomposition(
            self.target,
            result.components,
            trainer.settings,
            outcome.history(result.place),
            self.example,
            result.losses,
            result.moves,
            pilots,
            result.others,
            self.other_examples(),
        )

    def other_examples(self) -> PyTree | None:
        """Inputs [N, ...] of the other data; None without such data, or if they can't be read."""
        if not isinstance(self.source, Beside):
            return None
        try:
            found = self.source.other_examples(self.run.seed, _OTHER_EXAMPLES)
            return jax.block_until_ready(found)  # a sampling function may call Python code
        except Exception as error:  # what was trained must not be lost for these
            logging.warning(
                "The other data could not be read after the training (%s: %s), so that the "
                "decomposition holds no examples of them, and its summary and report give no error "
                "on them unless you call found.summary(x, other=...).",
                type(error).__name__,
                error,
            )
            return None
