"""The hyperparameters of a decomposition.

Letters: B batch, C components, m rank.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
import optax

from apd_jax.config_fields import check_at_least, check_values, setting
from apd_jax.errors import UserError
from apd_jax.objective.coefficients import Multipliers
from apd_jax.objective.objective import Objective
from apd_jax.objective.terms import TERMS
from apd_jax.training import eigenbasis, optimizers
from apd_jax.training.refine.rules import Rules
from apd_jax.training.schedules import Schedules
from apd_jax.training.unit_norm import Projection


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every hyperparameter of a decomposition: the objective, and how it is minimised.

    Flags and the keywords of `decompose` are its fields and those of its parts
    (see `config_fields`).
    """

    objective: Objective = setting(Objective(), "What is minimised.", flat=True)
    num_components: int = setting(1, "C, the number of components.")
    steps: int = setting(10_000, "Optimiser steps.")
    batch_size: int = setting(256, "B, number of new inputs in each step.")
    accumulate: int = setting(
        1,
        "Micro-batches that a step is divided into, one after another, to save memory; the "
        "selection is still that of the whole batch.",
    )
    learning_rate: float = setting(1e-3, "Peak learning rate of Adam.", traced=True)
    rank: int | None = setting(
        None, "m, the rank of each component at every site; min(d_in, d_out) if not set."
    )
    schedule: str = setting(
        "cosine",
        "Schedule of the learning rate after warmup: constant, linear, cosine, exponential, or "
        "points '0:1 0.7:1 1:0' (fraction of the steps:factor).",
    )
    warmup_fraction: float = setting(
        0.01, "Fraction of the steps in which the learning rate rises."
    )
    halflife: float | None = setting(None, "Steps in which the exponential schedule falls by half.")
    unit_norm: bool = setting(False, "Keep the columns of U at unit norm.")
    projection: Projection = setting(
        "auto",
        "Projection of the gradient of unit-norm U: literal sums over d_in, auto over the narrower "
        "side.",
    )
    moments: optimizers.Moments = setting(
        "float32",
        "Type in which Adam's two moments are kept between steps; bfloat16, rounded at random, "
        "halves their memory.",
    )
    matmul_precision: Literal["highest", "high", "default"] = setting(
        "highest",
        "Precision of a step's matrix products on GPU and TPU; attributions and faithfulness "
        "always use highest.",
    )
    start: Literal["random", "partitioned", "covering", "singular"] = setting(
        "random",
        "Initial components: drawn at random, as in the paper, or made from the target's weights: "
        "partitioned by cluster of inputs (of positions, where components are chosen for these), "
        "or covering each cluster as the target does, with the difference in spare "
        "components (without rounds of refinement, which would merge these); "
        "singular: the singular vectors of all sites, those that are used together in the same "
        "component.",
    )
    init_scale: float = setting(1.0, "Gain of the random initialisation.", traced=True)
    init_instances: int = setting(
        1,
        "Number of runs in the stacked tensor whose statistics the random initialisation has, as "
        "in the paper.",
    )
    relative_rate: bool = setting(
        False,
        "Learning rate in units of the root mean square of each site's U and V, so that one value "
        "fits every network.",
    )
    eigenbasis: bool = setting(
        False,
        "Adam works in the eigenvectors of the gradients of each site's matrix, on the side of the "
        "inputs and on that of the outputs, instead of in single entries of U and V; a side wider "
        f"than {eigenbasis.WIDEST} stays as it is.",
    )
    relative_losses: bool = setting(
        False,
        "Divide each loss by its value without components (simplicity: with the target as one "
        "component), so that the same coefficients fit every network.",
    )
    schedules: Schedules = setting(Schedules(), "Schedules of the coefficients and of k.")
    refine: Rules = setting(Rules(), "Rounds of refinement.")

    def __post_init__(self):
        check_values(self)
        check_at_least(self, 1, "num_components", "batch_size", "init_instances", "accumulate")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"batch_size must be a multiple of accumulate, got {self.batch_size} and "
                f"{self.accumulate}"
            )
        if self.rank is not None and self.rank < 1:
            raise UserError(f"rank must be at least 1 (or None for full rank), got {self.rank}")
        if not self.init_scale > 0:
            raise UserError(f"init_scale must be positive, got {self.init_scale}")
        self.rate()
        self._check_combinations()
        # How many positions there are is known with the network alone.
        self.check_sizes(None if self.objective.per_position else self.batch_size)

    def _check_combinations(self) -> None:
        """Raise UserError for settings that exclude each other."""
        if self.start == "covering" and self.refine.rounds(self.steps):
            raise UserError(
                "start='covering' keeps the difference from the target in spare components, which "
                f"rounds of refinement would merge; got refine.every={self.refine.every}, set "
                "refine.every=0"
            )
        if self.schedules.topk != "constant" and (
            self.objective.selection == "exact" or self.objective.topk is None
        ):
            raise UserError(
                "schedules.topk needs a topk, and a selection other than 'exact', got "
                f"{self.schedules.topk!r} with selection={self.objective.selection!r} and "
                f"topk={self.objective.topk}; leave it 'constant'"
            )
        if self.objective.selection == "gates" and (
            self.unit_norm or self.refine.rounds(self.steps)
        ):
            raise UserError(
                "learned gates exclude unit_norm and rounds of refinement (which would move "
                f"components away from their gates), got unit_norm={self.unit_norm} and "
                f"refine.every={self.refine.every}: set selection='sample', or leave out unit_norm "
                "and set refine={'every': 0}"
            )
        if self.objective.targeted and (self.accumulate > 1 or self.refine.rounds(self.steps)):
            raise UserError(
                "a targeted decomposition (coefficient other above 0) excludes accumulate and "
                f"rounds of refinement, got accumulate={self.accumulate}, refine.every="
                f"{self.refine.every}: leave out accumulate and set refine={{'every': 0}}"
            )

    def check_sizes(self, num_rows: int | None) -> None:
        """Raise UserError unless the largest k, that of results, batch and C fit each other.

        Args:
          num_rows: see `Objective.check_sizes`.
        """
        self.objective_at_end.check_sizes(num_rows, self.num_components)
        try:
            self.with_largest_k().objective.check_sizes(num_rows, self.num_components)
        except UserError as error:
            if self.schedules.largest_of_k() == 1:
                raise
            raise UserError(
                f"{error}: schedules.topk={self.schedules.topk!r} multiplies "
                f"{self.objective.topk}; lower its factors, or set it to 'constant'"
            ) from error

    def with_largest_k(self) -> "Settings":
        """The same settings, with k as large as it gets and factors of k of at most 1.

        The steps of a training select with these, since shapes depend on the largest k.
        """
        largest, k = self.schedules.largest_of_k(), self.objective.topk
        if largest == 1 or k is None:
            return self
        return self.with_topk(k * largest, schedules=self.schedules.with_k_divided(largest))

    def with_topk(self, k: float, **changes: Any) -> "Settings":
        """The same settings with another k, and other changes."""
        objective = dataclasses.replace(self.objective, topk=k)
        return dataclasses.replace(self, objective=objective, **changes)

    def optimizer(self) -> optimizers.Optimizer:
        """Make the optimiser."""
        return optimizers.decomposition_optimizer(
            self.rate(),
            relative=self.relative_rate,
            unit_norm=self.unit_norm,
            projection=self.projection,
            moments=self.moments,
        )

    def rate(self) -> optax.Schedule:
        """Make the learning-rate schedule; the rate rises again after each round of refinement."""
        schedule = optimizers.learning_rate_schedule(
            self.learning_rate,
            steps=self.steps,
            schedule=self.schedule,
            warmup_fraction=self.warmup_fraction,
            halflife=self.halflife,
        )
        if not self.refine.rounds(self.steps):
            return schedule
        return lambda step: schedule(step) * self.refine.risen(step, self.steps)

    @property
    def objective_at_end(self) -> Objective:
        """The objective with the k of the last step, which results are evaluated with."""
        k = self.objective.topk
        if k is None or self.schedules.topk == "constant":
            return self.objective
        if self.objective.selection == "sample":  # rounded as in a step
            product = np.float32(k) * np.float32(self.schedules.last_of_k())
            return self.objective.with_topk(max(int(product), 1))
        return dataclasses.replace(self.objective, topk=k * self.schedules.last_of_k())

    def multipliers(self, state: Any) -> Multipliers:
        """The multipliers for a state: those of the schedules and of the relative losses."""
        topk, losses = self.schedules.multipliers(state.step, self.steps)
        scales = state.scales or {}
        saved = {term.saved or name: name for name, term in TERMS.items()}
        relative = {saved[n]: losses.get(saved[n], 1.0) / scale for n, scale in scales.items()}
        return Multipliers(topk, {**losses, **relative})
