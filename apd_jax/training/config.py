"""The hyperparameters of a decomposition.

Letters: B batch, C components, m rank.
"""

import dataclasses
from typing import Any, Literal

import jax
import optax

from apd_jax.config_fields import check_at_least, check_values, setting
from apd_jax.errors import UserError
from apd_jax.objective.objective import Objective
from apd_jax.training import optimizers
from apd_jax.training.refine.rules import Rules
from apd_jax.training.schedules import Schedules


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every hyperparameter of a decomposition.

    Flags and the keywords of `decompose` are its fields and those of its parts (see `fields`).
    """

    objective: Objective = setting(Objective(), "Loss terms, selection and routes.", flat=True)
    num_components: int = setting(1, "C, the number of components.")
    steps: int = setting(10_000, "Optimiser steps.")
    batch_size: int = setting(256, "B, fresh inputs of a step.")
    learning_rate: float = setting(1e-3, "Peak learning rate of Adam.")
    rank: int | None = setting(None, "m of every site; min(d_in, d_out) if not set.")
    schedule: str = setting(
        "cosine",
        "Shape of the learning rate after warmup: constant, linear, cosine, exponential, or points "
        "'0:1 0.7:1 1:0' (share of the steps:factor).",
    )
    warmup_fraction: float = setting(0.01, "Share of the steps in which the learning rate rises.")
    halflife: float | None = setting(
        None, "Steps in which the exponential schedule falls to a half."
    )
    start: Literal["random", "parted", "covering"] = setting(
        "random",
        "Components at the first step: drawn at random, as in the paper, or from the target's "
        "weights: parted among groups of inputs that they treat alike, or covering each group as "
        "the target does, with the difference in spare components (without rounds of refinement, "
        "which would merge these).",
    )
    init_scale: float = setting(1.0, "Gain of the initialisation.")
    init_instances: int = setting(
        1, "Runs in the stacked tensor whose statistics the initialisation has, as in the paper."
    )
    relative_rate: bool = setting(
        False,
        "Learning rate in units of the root mean square of each site's U and V, so that it means "
        "the same in every network.",
    )
    relative_losses: bool = setting(
        False,
        "Divide losses by those of no component (simplicity: of the target as one), so that "
        "coefficients mean the same in every network.",
    )
    schedules: Schedules = setting(Schedules(), "How coefficients and k change over the run.")
    refine: Rules = setting(Rules(), "Rounds of refinement.")

    def __post_init__(self):
        check_values(self)
        check_at_least(self, 1, "num_components", "batch_size", "init_instances")
        if self.rank is not None and self.rank < 1:
            raise UserError(f"rank must be at least 1 (or None for full rank), got {self.rank}")
        if not self.init_scale > 0:
            raise UserError(f"init_scale must be positive, got {self.init_scale}")
        self.rate()
        if self.start == "covering" and self.refine.rounds(self.steps):
            raise UserError(
                "start='covering' keeps the difference to the target in spare components, which "
                f"rounds of refinement would merge, got refine.every={self.refine.every}; set "
                "refine.every=0"
            )
        if self.schedules.topk != "constant" and (
            self.objective.selection != "batch" or self.objective.topk is None
        ):
            raise UserError(
                f"schedules.topk is of batch top-k alone, got {self.schedules.topk!r} with "
                f"selection={self.objective.selection!r} and topk={self.objective.topk}; leave it "
                "'constant'"
            )
        # How many positions there are is known with the network alone.
        rows = None if self.objective.per_position else self.batch_size
        self.objective.check_sizes(rows, self.num_components)
        self.objective_at_end.check_sizes(rows, self.num_components)

    def optimizer(self) -> optimizers.Optimizer:
        """The optimiser, which keeps U at unit norm where that is wanted."""
        return optimizers.decomposition_optimizer(
            self.rate(),
            relative=self.relative_rate,
            unit_norm=self.objective.unit_norm,
            projection=self.objective.routes.projection,
        )

    def rate(self) -> optax.Schedule:
        """The learning-rate schedule; after a round of refinement the rate rises again."""
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
        """The objective as it is after training, with k at its last: what results are seen by."""
        k = self.objective.topk
        if k is None or self.schedules.topk == "constant":
            return self.objective
        return dataclasses.replace(self.objective, topk=k * self.schedules.last_of_k())

    def factors(self, state: Any) -> dict[str, jax.Array]:
        """Factors of coefficients and of k for a state: of schedules and of relative losses."""
        factors = self.schedules.factors(state.step, self.steps)
        scales = state.scales or {}
        return factors | {name: factors.get(name, 1.0) / s for name, s in scales.items()}
