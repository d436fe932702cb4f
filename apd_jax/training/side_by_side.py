"""Trainings that differ in numbers only, side by side in one compiled program.

Numbers are the fields of `Settings` that are marked `traced`: coefficients, the learning rate, k of
the batch-wide selection, powers, thresholds. A step reads them as arrays, beside its target.
Letters: n trainings, S seeds of each, B batch, T positions.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import sites
from apd_jax.config_fields import leaves, marked, with_unchecked
from apd_jax.data import Source
from apd_jax.objective.selection import Products
from apd_jax.runtime import loop, step_programs
from apd_jax.sites import Target
from apd_jax.training import trainer
from apd_jax.training.config import Settings
from apd_jax.training.step import TrainState
from apd_jax.training.trainer import Trainer

_K = "topk"


def numbers(settings: Settings) -> dict[str, float]:
    """The numbers of settings that a program can read as arrays, by dotted name.

    A coefficient of 0 is left out, since its term is not computed. So is k of any rule but
    batch-wide top-k, since shapes depend on it.
    """
    found = {n: v for n, field, v in leaves(settings) if marked(field, "traced") and v is not None}
    unused = {n for n, v in found.items() if n.startswith("coefficients.") and not v}
    if settings.objective.selection != "batch":
        unused.add(_K)
    return {name: value for name, value in found.items() if name not in unused}


def shared(settings: Settings) -> Settings:
    """Settings with placeholders for their numbers; equal ones can share a compiled program."""
    return with_unchecked(settings, dict.fromkeys(numbers(settings), 1.0))


class Family:
    """All trainings of a sweep that share a compiled program.

    Attributes:
      names: the numbers in which they differ.
    """

    def __init__(self, members: Sequence[Settings], source: Source, target: Target):
        """Make the functions that all members' trainings call.

        Args:
          members: the settings of every member, equal but for `numbers`.
          source: where batches come from: a sampling function.
          target: the network of one seed, for its shapes.
        """
        assert not source.feeds and len({shared(settings) for settings in members}) == 1
        members = [settings.with_largest_k() for settings in members]
        values = [numbers(settings) for settings in members]
        self.names = tuple(n for n in values[0] if len({each[n] for each in values}) > 1)
        self._base, self._source = members[0], source
        self._largest = max(each[_K] for each in values) if _K in self.names else 0.0
        rows = self._base.batch_size
        if _K in self.names and self._base.objective.per_position:
            key = jax.random.key(0)
            x = jax.eval_shape(lambda key: source.sample(None, key, 3), key)
            rows *= math.prod(sites.position_shape(target, x))
        self._most_rows = 2 * rows  # blocks of examples beside the steps are less than two batches
        has_rounds = self._base.refine.rounds(self._base.steps) > 0

        def init(context, seed, pool):
            target, own = self._own(context)
            make = trainer.make_init(own, own.optimizer(), source, None, has_rounds)
            return make(target, seed, pool)

        def step(context, state, key):
            target, own = self._own(context)
            return trainer.make_step(own, own.optimizer(), own.rate(), source)(target, state, key)

        def round_of_one(context, state, key):
            target, own = self._own(context)
            between = trainer.make_between(own, source)
            assert between is not None
            return between.function(target, state, key)

        self.init, self.step = jax.vmap(init, in_axes=(0, 0, None)), step
        rounds = trainer.make_between(self._base, source)
        self.between = rounds and rounds._replace(function=round_of_one)

    def arrays(self, settings: Settings, count: int) -> dict[str, Any]:
        """The numbers of a member for each of its seeds, leaves [S, ...]."""
        own = numbers(settings.with_largest_k())
        found: dict[str, Any] = {name: np.float32(own[name]) for name in self.names}
        if _K in found:
            found[_K] = Products.of(own[_K], self._most_rows)[1:]
        return jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * count), found)

    def _own(self, context: Any) -> tuple[Target, Settings]:
        """The target of a single training, and its settings with the numbers that it reads."""
        target, values = context
        if _K in values:
            values = values | {_K: Products(self._largest, *values[_K])}
        return target, with_unchecked(self._base, values)


class SideBySide:
    """Some trainings of a family as a single one, that `session.fit` runs; see `loop.Training`.

    Attributes:
      trainers: the trainings, n of them.
      context: targets and numbers, every leaf [n·S, ...].
      layout: how the arrays are divided over devices; None for a single device.
    """

    feed: loop.Feed | None = None

    def __init__(
        self,
        family: Family,
        trainers: Sequence[Trainer],
        mesh_shape: Sequence[int] | None = None,
    ):
        """Put trainings side by side, each of S seeds; for the mesh see `mesh.layout`."""
        self.trainers, self._family = trainers, family
        self.steps, self.step, self.between = trainers[0].steps, family.step, family.between
        self.seeds = jnp.concatenate([each.seeds for each in trainers])
        self.layout = trainer.layout_of(trainers[0].settings, len(self.seeds), mesh_shape)
        contexts = [
            (each.context, family.arrays(each.settings, len(each.seeds))) for each in trainers
        ]
        self.context = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *contexts)

    def init_state(self) -> TrainState:
        """Make the states before the first step, every leaf [n·S, ...]."""
        init = self._family.init
        return step_programs.first_state(self.layout, init, self.context, self.seeds, None)
