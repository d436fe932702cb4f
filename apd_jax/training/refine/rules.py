"""When rounds of refinement are, and what they take for a sign.

Letters: B batch.
"""

import dataclasses

import jax
import jax.numpy as jnp

from apd_jax.config_fields import check_at_least, check_values, setting
from apd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rules:
    """When rounds are, and what the moves take for a sign."""

    every: float = setting(
        0.0,
        "Steps between two rounds of refinement, below 1 the share of all steps; 0 for none.",
    )
    until: float = setting(0.6, "Share of the steps after which there is no round.")
    batch_size: int = setting(
        4096, "Examples that a round looks at; of fewer, rare mechanisms have too few."
    )
    merge_cosine: float = setting(
        0.9, "Components above this cosine become one; halves of a mechanism show 1.0."
    )
    split_cosine: float = setting(
        0.25,
        "A component is split below this cosine of its two clusters of inputs; two mechanisms show "
        "0.0 to 0.2, one 0.7 to 0.9, or 0.3 to 0.7 of more mechanisms than dimensions.",
    )
    gather_error: float = setting(
        0.3,
        "A direction is gathered above this share of error, 1 being that of no component; it must "
        "fall to a half by it.",
    )
    free_share: float = setting(
        0.03,
        "A component is free below this share of the typical attribution mass; what noise alone "
        "activates stays below 0.01.",
    )
    limit: int = setting(10, "Splits and gathers in a round, at most so many each.")
    share: bool = setting(
        False,
        "In the last round let free components hold equal shares of what they hold together, for "
        "networks with more mechanisms than dimensions.",
    )
    ramp: int = setting(100, "Steps in which the learning rate rises again after a round.")

    def __post_init__(self):
        check_values(self)
        check_at_least(self, 0, "every")
        if self.every > 1 and self.every % 1:
            raise UserError(f"every must be whole, or a share below 1, got {self.every}")
        check_at_least(self, 1, "batch_size", "limit", "ramp")
        for name in ("until", "merge_cosine", "split_cosine", "gather_error", "free_share"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{name} must be in (0, 1), got {getattr(self, name)}")

    def spacing(self, steps: int) -> int:
        """Steps between two rounds in a run of so many steps; 0 without rounds.

        A share of the steps is rounded to whole ramps: the rate has risen before the next round.
        """
        if self.every >= 1 or not self.every:
            return int(self.every)
        return max(round(self.every * steps / self.ramp), 1) * self.ramp

    def rounds(self, steps: int) -> int:
        """How many rounds a run of so many steps has; round i is after step i · spacing."""
        spacing = self.spacing(steps)
        return int(self.until * steps) // spacing if spacing else 0

    def risen(self, step: jax.Array, steps: int) -> jax.Array:
        """The learning rate's factor, which rises from 0 to 1 in `ramp` steps after a round."""
        step, spacing = jnp.asarray(step, jnp.float32), self.spacing(steps)
        after = (step >= spacing) & (step < (self.rounds(steps) + 1) * spacing)
        return jnp.where(after, jnp.minimum((step % spacing + 1) / self.ramp, 1.0), 1.0)
