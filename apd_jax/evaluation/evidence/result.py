"""The evidence as it comes out: numbers, verdicts, tables.

Letters: C components.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from apd_jax.evaluation import tables
from apd_jax.evaluation.evidence.adversary import Adversary
from apd_jax.evaluation.evidence.cost import Cost
from apd_jax.evaluation.evidence.distance import Kind, Number
from apd_jax.evaluation.evidence.verdicts import Limits, Verdict, judge

UNITS = {
    "kl": "KL divergence from the target's output, in nats",
    "mse": "mean squared difference from the target's output, over that of a zero output",
}
LINES = {
    "own": "own mask",
    "all": "all components",
    "random": "random partial masks",
    "random_half": "random halves",
    "adversarial_": "adversarial, {} steps",
    "adversarial_shared_": "adversarial, one mask for all, {} steps",
    "pooled_": "pooled over {} rows",
    "never_needed": "without those never active",
    "permuted": "mask of another row",
    "zero": "no component",
}
BASELINES = {"svd": "singular vectors", "bundled": "bundled singular vectors", "neurons": "neurons"}
OTHERS = {
    "l0": "active components of a row",
    "bits": "bits to name them",
    "active_rank": "active rank",
    "active_parameters": "active parameters, share of the decomposed",
    "alive": "components ever active",
    "always_on": "components active on more than 95 %",
    "faithfulness_mean": "squared weights missing, mean over sites",
    "faithfulness_worst": "squared weights missing, worst site",
    "ce_target": "cross entropy of the network",
    "ce_own": "cross entropy, own mask",
    "ce_all": "cross entropy, all components",
    "ce_recovered": "cross entropy recovered",
}
_LEFT_OUT = ("active_parameters",)  # of `to_dict`, whose keys are fixed


class SiteLine(NamedTuple):
    """One site.

    Attributes:
      name: name of the site.
      missing: `‖θ* − ΣP‖² / ‖θ*‖²`.
      replaced: distance with this site alone replaced by the components' sum.
      active_rank: rank of the active components there.
      network_rank: rank of the target's matrix.
    """

    name: str
    missing: float
    replaced: Number
    active_rank: Number
    network_rank: int


def label(name: str) -> str:
    """A line's name for people: `"adversarial_20"` is "adversarial, 20 steps"."""
    first, _, rest = name.partition("_")
    if first in BASELINES:
        return f"{BASELINES[first]}: {label(rest)}"
    stem, _, count = name.rpartition("_")
    if count.isdecimal():
        return LINES[f"{stem}_"].format(count)
    return (LINES | OTHERS)[name]


@dataclasses.dataclass(frozen=True, repr=False)
class Evidence:
    """What `Decomposition.evidence` finds; printed, it is a table with verdicts below.

    Attributes:
      numbers: `{line: Number}`; `evidence["own"]` is the value of one.
      sites: a `SiteLine` for every site.
      distance: `"kl"` (nats), or `"mse"` over that of a zero output.
      num_examples, num_rows: number of examples, and of those of their rows that count. A row is
        what has a mask of its own: an example, or a position of one.
      per_position: whether rows are positions.
      num_components: C.
      network_rank: rank of the target's decomposed matrices.
      active_share: [C] share of the rows that a component is active on.
      adversary: settings of the search for the worst masks.
      draws: number of random masks per line.
      limits: limits of the verdicts.
      notes: sentences on what is missing or different.
      cost: work of the measurement.
    """

    numbers: Mapping[str, Number]
    sites: tuple[SiteLine, ...]
    distance: Kind
    num_examples: int
    num_rows: int
    per_position: bool
    num_components: int
    network_rank: int
    active_share: np.ndarray
    adversary: Adversary
    draws: int
    limits: Limits
    notes: tuple[str, ...]
    cost: Cost

    def __getitem__(self, name: str) -> float:
        return self.numbers[name].value

    @property
    def scale(self) -> float:
        """The distance with no component, which verdicts take shares of; 1 unless it is positive.

        It is 0 where the components change nothing; a rounded KL divergence may then be negative.
        """
        return self["zero"] if self["zero"] > 0 else 1.0

    @property
    def worst_site(self) -> SiteLine:
        """The site of which most is missing."""
        return self.sites[int(np.argmax([site.missing for site in self.sites]))]

    @property
    def most_changing_site(self) -> SiteLine:
        """The site that changes the output most when it alone is replaced by its sum."""
        return self.sites[int(np.argmax([site.replaced.value for site in self.sites]))]

    @functools.cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Every line against its limit."""
        return judge(self)

    @property
    def failed(self) -> list[str]:
        """Names of the verdicts that fail."""
        return [verdict.name for verdict in self.verdicts if not verdict.passed]

    def to_dict(self, prefix: str = "") -> dict[str, float]:
        """Numbers by name, flat, and standard errors as `<name>_se`, a prefix before each.

        Numbers that are no mean over examples (of weights, and counts) have no standard error.
        """
        found: dict[str, float] = {}
        for name, number in self.numbers.items():
            if name in _LEFT_OUT:
                continue
            found[prefix + name] = number.value
            if number.se is not None:
                found[f"{prefix}{name}_se"] = number.se
        return found

    @property
    def distances(self) -> dict[str, Number]:
        """The lines that are distances, in the order of the table."""
        return {name: n for name, n in self.numbers.items() if name not in OTHERS}

    def __repr__(self) -> str:
        parts = [tables.text(*table) for table in self.tables().values()]
        return "\n\n".join(parts) + "\n\n" + "\n".join(self.sentences())

    def _repr_html_(self) -> str:
        found = self.tables()
        last = list(found)[-1]
        return "".join(
            tables.as_html(title, *table, self.sentences() if title == last else ())
            for title, table in found.items()
        )

    def tables(self) -> dict[str, tuple[list[str], list[list[str]]]]:
        """Heads and rows by title: distances, other numbers, sites."""
        distances = [
            [label(name), tables.number(n.value), _error(n), tables.number(n.value / self.scale)]
            for name, n in self.distances.items()
        ]
        others = [
            [label(name), tables.number(n.value), _error(n)]
            for name, n in self.numbers.items()
            if name in OTHERS
        ]
        sites = [
            [
                site.name,
                tables.number(site.missing),
                tables.number(site.replaced.value),
                _error(site.replaced),
                f"{site.active_rank.value:.3g} of {site.network_rank}",
            ]
            for site in self.sites
        ]
        return {
            "Distances": (["on", "distance", "± SE", "over no component"], distances),
            "Size and weights": (["number", "value", "± SE"], others),
            "Sites": (["site", "missing", "distance if replaced", "± SE", "active rank"], sites),
        }

    def rows_sentence(self) -> str:
        """What a row is, and how many count."""
        what = "a position of an example" if self.per_position else "an example"
        return f"A row is {what}, with a mask of its own; {self.num_rows:,} rows count."

    def sentences(self) -> list[str]:
        """The distance, the verdicts, and what is missing."""
        never = int(np.sum(self.active_share == 0))
        return [
            f"Distance: {UNITS[self.distance]}. Measured on {self.num_examples:,} examples. "
            f"{self.rows_sentence()} {never} of {self.num_components} components are active on "
            "none of the rows.",
            *map(str, self.verdicts),
            *self.notes,
        ]


def _error(number: Number) -> str:
    return "" if number.se is None else f"{number.se:.1g}"
