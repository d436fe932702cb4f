"""What the evidence says: each line against a stated limit.

Distances are judged as shares of the distance with no component at all, so that one limit serves
every network.
"""

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from apd_jax.config_fields import setting
from apd_jax.config_fields.values import as_float, number
from apd_jax.errors import UserError

# Below this share of the distance with no component, two distances count as equal.
FLOOR = 1e-3


@dataclasses.dataclass(frozen=True)
class Limits:
    """The largest values with which a verdict passes.

    Distances are judged as shares of the distance with no component.
    """

    own: float = setting(0.1, "Largest distance with the own mask.")
    all: float = setting(0.01, "Largest distance with all components on.")
    random: float = setting(
        0.2, "Largest distance with random masks: the larger of partial masks and halves."
    )
    adversarial: float = setting(
        0.5, "Largest distance with adversarial masks of every row, at the fewest steps."
    )
    pooled: float = setting(
        0.2, "Largest distance with pooled masks: the larger of the two group sizes."
    )
    never_needed: float = setting(
        0.05, "Largest distance without the components that no row needs."
    )
    permuted: float = setting(
        0.5, "Largest ratio of the own mask's distance and that with the mask of another row."
    )
    size: float = setting(0.25, "Largest active rank, as a share of the network's.")
    always_on: float = setting(
        0.0, "Largest number of components that are active on more than 95 % of the rows."
    )
    faithfulness: float = setting(
        0.01, "Largest share of the squared weights that is missing at a site."
    )
    replaced: float = setting(
        0.01, "Largest distance with one site alone replaced by the sum of its components."
    )
    equal_size: float = setting(
        1.0, "Largest ratio of the own mask's distance and that of the best baseline of equal size."
    )

    def __post_init__(self):
        for name, given in dataclasses.asdict(self).items():
            value = number(given)
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not is_number or not value >= 0:
                raise UserError(f"the limit {name} must be a number of at least 0, got {value!r}")
            object.__setattr__(self, name, as_float(value))


class Verdict(NamedTuple):
    """A line against its limit.

    Attributes:
      name: name of the line.
      passed: whether the value is at most the limit.
      value: measured value.
      limit: the largest value that passes.
      unit: what the value is a share of, or counts.
      meaning: one sentence on what the line shows.
      where: the site that the value is of, or empty.
    """

    name: str
    passed: bool
    value: float
    limit: float
    unit: str
    meaning: str
    where: str = ""

    def __str__(self) -> str:
        sign = "passes" if self.passed else "FAILS"
        where = f" at {self.where}" if self.where else ""
        return f"{self.name} {sign}: {self.value:.3g} {self.unit}{where} (limit {self.limit:g})"


class _Rule(NamedTuple):
    name: str
    limit: str
    unit: str
    meaning: str
    value: Callable[[Any], float | None]
    where: Callable[[Any], str] = lambda _: ""


_OF_ZERO = "of the distance with no component"


# The lines that each limit applies to; of several lines, the largest value counts.
_LINES = {
    "own": ("own",),
    "all": ("all",),
    "random": ("random", "random_half"),
    "pooled": ("pooled_8", "pooled_64"),
    "never_needed": ("never_needed",),
}


def line_limits(found: Any) -> dict[str, float]:
    """The limits of distances, `{line: share of the distance with no component}`."""
    lines = _LINES | {"adversarial": (f"adversarial_{found.adversary.steps[0]}",)}
    return {line: getattr(found.limits, name) for name, some in lines.items() for line in some}


def _share(limit: str) -> Callable[[Any], float]:
    """The largest of a limit's lines over that of no component; NaN if one of them is."""
    return lambda found: float(np.max([found[name] for name in _LINES[limit]])) / found.scale


def _floored(found: Any, first: float, second: float) -> float:
    floor = FLOOR * found.scale
    return float(np.maximum(first, floor) / np.maximum(second, floor))  # NaN if one of them is


def _permuted(found: Any) -> float | None:
    if "permuted" not in found.numbers:  # there is no other row
        return None
    return _floored(found, found["own"], found["permuted"])


def _equal_size(found: Any) -> float | None:
    others = [n.value for name, n in found.numbers.items() if name in _BASELINES]
    return _floored(found, found["own"], float(np.min(others))) if others else None


_BASELINES = ("svd_own", "bundled_own", "neurons_own")
_RULES = (
    _Rule(
        "own mask",
        "own",
        _OF_ZERO,
        "The active components alone must give the network's output.",
        _share("own"),
    ),
    _Rule(
        "all components",
        "all",
        _OF_ZERO,
        "All components together must be the network.",
        _share("all"),
    ),
    _Rule(
        "random partial masks",
        "random",
        _OF_ZERO,
        "Components that count as inactive must not matter, however much of them is on.",
        _share("random"),
    ),
    _Rule(
        "adversarial masks",
        "adversarial",
        _OF_ZERO,
        "Inactive components must not matter in the worst combination that a search finds.",
        lambda found: found[f"adversarial_{found.adversary.steps[0]}"] / found.scale,
    ),
    _Rule(
        "pooled rows",
        "pooled",
        _OF_ZERO,
        "A row's explanation must hold together with those of other rows.",
        _share("pooled"),
    ),
    _Rule(
        "never needed",
        "never_needed",
        _OF_ZERO,
        "Components that are active on no row must not be needed for any.",
        _share("never_needed"),
    ),
    _Rule(
        "mask of another row",
        "permuted",
        "of the distance with another row's mask",
        "The choice must matter: the same number of wrong components must do worse.",
        _permuted,
    ),
    _Rule(
        "size",
        "size",
        "of the network's rank",
        "What is active on a row must be a small part of the network.",
        lambda found: found["active_rank"] / max(found.network_rank, 1),
    ),
    _Rule(
        "always active",
        "always_on",
        "components",
        "A component that is active on nearly every row does not tell rows apart.",
        lambda found: found["always_on"],
    ),
    _Rule(
        "faithfulness by site",
        "faithfulness",
        "of the squared weights missing",
        "The components must add up to every matrix: a small total can hide one broken site.",
        lambda found: found.worst_site.missing,
        lambda found: found.worst_site.name,
    ),
    _Rule(
        "sites one by one",
        "replaced",
        _OF_ZERO,
        "No site alone may change the output when its matrix is replaced by the components' sum.",
        lambda found: found.most_changing_site.replaced.value / found.scale,
        lambda found: found.most_changing_site.name,
    ),
    _Rule(
        "equal size",
        "equal_size",
        "of the best baseline's distance",
        "It must do at least as well as untrained singular vectors and neurons of the same size.",
        _equal_size,
    ),
)


def judge(found: Any) -> tuple[Verdict, ...]:
    """Hold evidence against its limits."""
    verdicts = []
    for rule in _RULES:
        value, limit = rule.value(found), getattr(found.limits, rule.limit)
        if value is None:
            continue
        passed = bool(value <= limit)  # a NaN fails
        verdicts.append(
            Verdict(rule.name, passed, value, limit, rule.unit, rule.meaning, rule.where(found))
        )
    return tuple(verdicts)
