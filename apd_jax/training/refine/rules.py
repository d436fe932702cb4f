"""When rounds of refinement take place, and the thresholds of their moves.

Letters: B batch.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from apd_jax.config_fields import check_at_least, check_values, setting
from apd_jax.errors import UserError

Measure = Literal["squares", "minimality"]


@dataclasses.dataclass(frozen=True)
class Rules:
    """When rounds take place, and the thresholds of their moves."""

    every: float = setting(
        0.0,
        "Steps between two rounds of refinement; below 1, as a share of all steps; 0 for none.",
    )
    until: float = setting(0.6, "Share of the steps after which no round takes place.")
    batch_size: int = setting(
        4096,
        "Examples in a round, or positions where components are chosen for positions; with fewer, "
        "rare mechanisms occur too seldom.",
    )
    merge_cosine: float = setting(
        0.9,
        "Components are merged above this cosine; halves of one mechanism have 1.0.",
        traced=True,
    )
    split_cosine: float = setting(
        0.25,
        "A component is split if its two clusters of inputs have a cosine below this; two "
        "mechanisms have 0.0 to 0.2, one has 0.7 to 0.9, or 0.3 to 0.7 where mechanisms outnumber "
        "dimensions.",
        traced=True,
    )
    gather_error: float = setting(
        0.3,
        "A direction is gathered if its error is above this, in units of the error without any "
        "component; gathering must halve the error.",
        traced=True,
    )
    measure: Measure = setting(
        "squares",
        "What decides on moves: squares (of attributions and of output errors), or minimality "
        "(shares of a row's squared attributions, and the distance of the minimality loss, such as "
        "a KL divergence).",
    )
    free_share: float = setting(
        0.03,
        "A component is free if its attribution mass is below this share of the typical one; a "
        "component that only noise activates stays below 0.01.",
        traced=True,
    )
    limit: int = setting(10, "Largest number of splits, and of gathers, in a round.")
    share: bool = setting(
        False,
        "In the last round, spread what free components hold evenly over them, for networks with "
        "more mechanisms than dimensions.",
    )
    ramp: int = setting(
        100, "Steps in which the learning rate rises from zero again after a round."
    )

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
        """Steps between two rounds in a run of the given number of steps; 0 if it has no round.

        A share of the steps is rounded to whole ramps, so that the learning rate has risen before
        the next round.
        """
        found = int(self.every)
        if 0 < self.every < 1:
            found = max(round(self.every * steps / self.ramp), 1) * self.ramp
        return found if found <= int(self.until * steps) else 0

    def rounds(self, steps: int) -> int:
        """Number of rounds in a run of the given number of steps; round i is after i · spacing."""
        spacing = self.spacing(steps)
        return int(self.until * steps) // spacing if spacing else 0

    def risen(self, step: jax.Array, steps: int) -> jax.Array:
        """Factor of the learning rate: it rises from 0 to 1 in `ramp` steps after a round."""
        step, spacing = jnp.asarray(step, jnp.float32), self.spacing(steps)
        after = (step >= spacing) & (step < (self.rounds(steps) + 1) * spacing)
        return jnp.where(after, jnp.minimum((step % spacing + 1) / self.ramp, 1.0), 1.0)
