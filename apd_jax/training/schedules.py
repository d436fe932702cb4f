"""How rates, coefficients and k change over a run: one factor by step, in a few shapes.

Letters: t step, T number of steps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.config_fields import setting
from apd_jax.errors import UserError
from apd_jax.objective.objective import Coefficients

SHAPES = ("constant", "linear", "cosine", "exponential")
Factor = Callable[[jax.Array], jax.Array]


def factor(schedule: str, steps: int, halflife: float | None = None) -> Factor:
    """A function from t in [0, T) to a factor.

    `constant` is 1, `linear` is `1 − t/T`, `cosine` is `cos(½π · t/(T−1))` (a quarter of a wave,
    where optax's decays by half a wave), `exponential` is `0.5^(t/halflife)`. Pairs
    `"0:1 0.7:1 1:0"` of a share of T and a factor are points on a piecewise linear curve, which
    stays at its first and last factor outside of them.

    Args:
      schedule: a name or points.
      steps: T.
      halflife: steps in which `exponential` falls to a half.

    Raises:
      UserError: another name, points that do not ascend or are not in [0, 1], a negative factor, a
        missing halflife.
    """
    if schedule == "exponential" and not (halflife and halflife > 0):
        raise UserError(f"schedule 'exponential' needs a positive halflife, got {halflife}")
    if schedule == "constant":
        return lambda t: jnp.ones_like(t, jnp.float32)
    if schedule == "linear":
        return lambda t: 1 - t / steps
    if schedule == "cosine":
        return lambda t: jnp.cos(0.5 * jnp.pi * t / max(steps - 1, 1))
    if schedule == "exponential":
        return lambda t: 0.5 ** (t / halflife)
    shares, factors = points(schedule)
    places, factors = np.float32(shares) * np.float32(steps), np.float32(factors)
    return lambda t: jnp.interp(t, places, factors)


def points(schedule: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Shares of the steps, and factors, of `"0:1 0.7:1 1:0"`."""
    try:
        pairs = [tuple(map(float, pair.split(":"))) for pair in schedule.split()]
        shares, factors = zip(*pairs, strict=True)
    except ValueError:
        shares, factors = (), ()
    ascending = all(a < b for a, b in zip(shares, shares[1:], strict=False))
    if not shares or not ascending or not 0 <= shares[0] <= shares[-1] <= 1 or min(factors) < 0:
        raise UserError(
            f"schedule must be one of {SHAPES}, or points such as '0:1 0.7:1 1:0' (shares of the "
            f"steps, ascending in [0, 1], and factors that are not negative), got {schedule!r}"
        )
    return shares, factors


_OfCoefficients: Any = dataclasses.make_dataclass(
    "_OfCoefficients",
    [
        (field.name, str, setting("constant", "Of this coefficient: a shape, or points '0:1 1:0'."))
        for field in dataclasses.fields(Coefficients)
    ],
    frozen=True,
)


@dataclasses.dataclass(frozen=True)
class Schedules(_OfCoefficients):
    """How every coefficient and k change over the run: factors, by `factor`'s names or points."""

    topk: str = setting(
        "constant", "Of k; factors are at most 1, and floor(k · factor · B) pairs are active."
    )

    def __post_init__(self):
        for name, schedule in dataclasses.asdict(self).items():
            try:
                factor(schedule, 1)
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
        if self.topk not in SHAPES and max(points(self.topk)[1]) > 1:
            raise UserError(f"topk: factors of k must be at most 1, got {self.topk!r}")

    def last_of_k(self) -> float:
        """The factor of k at the end of the run; every shape but the constant one falls to 0."""
        if self.topk in SHAPES:
            return float(self.topk == "constant")
        return points(self.topk)[1][-1]

    def factors(self, step: jax.Array, steps: int) -> dict[str, jax.Array]:
        """The factors at a step, of what is not constant."""
        at = jnp.asarray(step, jnp.float32)
        moving = {n: s for n, s in dataclasses.asdict(self).items() if s != "constant"}
        return {name: factor(schedule, steps)(at) for name, schedule in moving.items()}
