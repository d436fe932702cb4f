"""The hyperparameters of a decomposition.

Letters: B batch, C components, m rank.
"""

import dataclasses

import optax

from apd_jax import optimizers
from apd_jax.errors import UserError
from apd_jax.objective import Objective


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
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.rank is not None and self.rank < 1:
            raise UserError(f"rank must be at least 1 (or None for full rank), got {self.rank}")
        if not self.init_scale > 0:
            raise UserError(f"init_scale must be positive, got {self.init_scale}")
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
