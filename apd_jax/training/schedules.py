"""Schedules of the learning rate, the coefficients and k: a factor for every step.

Letters: t step, T number of steps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.config_fields import check_values, setting
from apd_jax.errors import UserError, about
from apd_jax.objective.coefficients import Coefficients, Multipliers

SHAPES = ("constant", "linear", "cosine", "exponential")
Factor = Callable[[jax.Array], jax.Array]


def factor(schedule: str, steps: int, halflife: float | None = None) -> Factor:
    """A function from t in [0, T) to a factor.

    `constant` is 1, `linear` is `1 − t/T`, `cosine` is `cos(½π · t/(T−1))` (a quarter of a wave,
    where optax's decays by half a wave), `exponential` is `0.5^(t/halflife)`. Pairs
    `"0:1 0.7:1 1:0"` (fraction of T : factor) are points of a piecewise linear curve, which is
    constant before the first and after the last of them.

    Args:
      schedule: one of `SHAPES`, or points.
      steps: T.
      halflife: steps in which `exponential` falls by half.

    Raises:
      UserError: an unknown name, points that do not ascend or are not in [0, 1], a negative factor,
        a missing halflife.
    """
    if schedule == "constant":
        return lambda t: jnp.ones_like(t, jnp.float32)
    if schedule == "linear":
        return lambda t: 1 - t / steps
    if schedule == "cosine":
        return lambda t: jnp.cos(0.5 * jnp.pi * t / max(steps - 1, 1))
    if schedule == "exponential":
        if halflife is None or not halflife > 0:
            raise UserError(f"schedule 'exponential' needs a positive halflife, got {halflife}")
        return lambda t: 0.5 ** (t / halflife)
    shares, heights = (np.array(numbers, np.float32) for numbers in points(schedule))
    places = shares * np.float32(steps)
    return lambda t: jnp.interp(t, places, heights)


def _rounded_up(number: float) -> float:
    """The least number of type float32 that is not below a number."""
    near = np.float32(number)
    return float(near if near >= number else np.nextafter(near, np.float32(np.inf)))


def points(schedule: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Parse `"0:1 0.7:1 1:0"`: the fractions of the steps, and the factors there."""
    try:
        text = schedule if isinstance(schedule, str) else ""
        pairs = [tuple(map(float, pair.split(":"))) for pair in text.split()]
        shares, heights = zip(*pairs, strict=True)
    except ValueError:
        shares = heights = ()
    ascending = all(a < b for a, b in zip(shares, shares[1:], strict=False))
    if not shares or not ascending or not 0 <= shares[0] <= shares[-1] <= 1 or min(heights) < 0:
        raise UserError(
            f"schedule must be one of {SHAPES}, or points such as '0:1 0.7:1 1:0' (fractions of "
            f"the steps, ascending in [0, 1], and factors that are not negative), got {schedule!r}"
        )
    return shares, heights


_OfCoefficients: Any = dataclasses.make_dataclass(
    "_OfCoefficients",
    [
        (
            field.name,
            str,
            setting("constant", "Schedule of this coefficient: a shape, or points '0:1 1:0'."),
        )
        for field in dataclasses.fields(Coefficients)
    ],
    frozen=True,
)


@dataclasses.dataclass(frozen=True)
class Schedules(_OfCoefficients):
    """Schedules of every coefficient and of k, each one of `factor`'s names or points."""

    topk: str = setting(
        "constant",
        "Schedule of k, such as '0:4 0.4:1', which starts with four times as many active "
        "components. Batch-wide, floor(k · factor · B) pairs are active; for every sample "
        "floor(k · factor) components, at least one.",
    )

    def __post_init__(self):
        check_values(self, skip=tuple(field.name for field in dataclasses.fields(self)))
        for name, schedule in dataclasses.asdict(self).items():
            with about(name):
                factor(schedule, 1)

    def largest_of_k(self) -> float:
        """The largest factor of k, or 1 if all are smaller."""
        return 1.0 if self.topk in SHAPES else max(1.0, *points(self.topk)[1])

    def with_k_divided(self, divisor: float) -> "Schedules":
        """The same schedules, with the points of k divided by a number of at least 1.

        Quotients are rounded up as float32, so that a multiple of the divisor times a quotient is
        not below the whole number that it stands for.
        """
        heights = [_rounded_up(height / divisor) for height in points(self.topk)[1]]
        pairs = zip(points(self.topk)[0], heights, strict=True)
        return dataclasses.replace(self, topk=" ".join(f"{at!r}:{h!r}" for at, h in pairs))

    def last_of_k(self) -> float:
        """The factor of k at the last step; every shape but the constant one falls to 0."""
        if self.topk in SHAPES:
            return float(self.topk == "constant")
        return points(self.topk)[1][-1]

    def multipliers(self, step: jax.Array, steps: int) -> Multipliers:
        """The multipliers at a step of those coefficients, and of k, that are not constant."""
        at = jnp.asarray(step, jnp.float32)
        moving = {n: s for n, s in dataclasses.asdict(self).items() if s != "constant"}
        losses = {name: factor(schedule, steps)(at) for name, schedule in moving.items()}
        return Multipliers(losses.pop("topk", None), losses)
