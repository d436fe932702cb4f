"""Weights of the loss terms, what they are multiplied by at a step, and choices of algorithm."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from apd_jax.attribution import Mode
from apd_jax.config_fields import check_at_least, check_values, setting
from apd_jax.errors import UserError
from apd_jax.masked import forward
from apd_jax.masked.remat import Remat


class Multipliers(NamedTuple):
    """What k and the coefficients are multiplied by at one step of a training.

    Attributes:
      topk: scalar in [0, 1]; None where k is constant.
      losses: `{term: scalar}`; a term that is not in it keeps its coefficient.
    """

    topk: jax.Array | None = None
    losses: Mapping[str, jax.Array | float] = {}


CONSTANT = Multipliers()  # everything keeps its value


def _weight(default: float, sentence: str) -> Any:
    return setting(default, sentence, traced=True)


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """Weights of the loss terms; a term of weight 0 is not computed. None may be negative."""

    faithfulness: float = _weight(1.0, "The components add up to the target's weights.")
    minimality: float = _weight(0.0, "Active components alone give the target's output.")
    simplicity: float = _weight(0.0, "Active components have a low Schatten norm.")
    activation: float = _weight(0.0, "Active components alone give its hidden activations.")
    output: float = _weight(0.0, "All components together give the target's output.")
    lp_minimality: float = _weight(0.0, "Attributions have a low Lp norm.")
    lp_simplicity: float = _weight(0.0, "Schatten norm of components, weighted by attributions.")
    partial: float = _weight(
        0.0, "Active components and random parts of the others give the target's output."
    )

    other: float = setting(
        0.0,
        "In a targeted decomposition, on the other data: active components and the remainder, "
        "which the components miss of the weights, give the target's output.",
        flag=False,
    )
    l0: float = setting(
        0.0, "With learned gates: at most k components are active on average, max(0, L0/k − 1)."
    )

    def __post_init__(self):
        check_values(self)
        for name, value in dataclasses.asdict(self).items():
            if value < 0:
                raise UserError(f"coefficient {name} must not be negative, got {value}")

    def used(self) -> dict[str, Any]:
        """The weights of the terms that are computed, `{term: weight}`; a traced weight is one."""
        weights = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: w for name, w in weights if isinstance(w, jax.Array) or w}


@dataclasses.dataclass(frozen=True)
class Routes:
    """Which of several algorithms computes an objective; all but the sketch agree exactly."""

    attribution_mode: Mode = setting(
        "auto",
        "Algorithm of the attributions: forward, reverse, literal, auto (the cheapest), or sketch, "
        "an unbiased estimate of squared attributions.",
    )
    num_probes: int = setting(
        1,
        "Random directions of the sketch. A squared attribution's relative standard error is about "
        "sqrt(2 / directions): one is too few where components are chosen for positions.",
    )
    evaluation_probes: int = setting(
        0,
        "Random directions of the sketch wherever components are chosen outside training steps: in "
        "results, evidence and reports. 0 takes num_probes.",
    )
    masked_route: forward.MaskedRoute = setting(
        "auto",
        "Masked pass: grouped computes only the active pairs, dense all of them, auto chooses by "
        "size.",
    )
    remat: Remat = setting(
        "none",
        "What the gradient of masked passes recomputes, to save memory: nothing, everything but "
        "the outputs of sites, or everything.",
    )

    def __post_init__(self):
        check_values(self)
        check_at_least(self, 1, "num_probes")
        check_at_least(self, 0, "evaluation_probes")

    def probes(self, training: bool) -> int:
        """Number of random directions of the sketch, in training steps or outside them."""
        return self.num_probes if training else self.evaluation_probes or self.num_probes
