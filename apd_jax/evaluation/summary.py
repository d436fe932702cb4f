"""A decomposition in numbers: what is active, what it explains, and whether it is trivial.

Letters: N examples, T positions, R rows, C components.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apd_jax.errors import UserError
from apd_jax.evaluation import tables
from apd_jax.evaluation.compare import SeedMatrix
from apd_jax.evaluation.findings import ALWAYS, Finding
from apd_jax.evaluation.worst import ErrorSpread


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to run the network.

    Attributes:
      name: what was switched on.
      active_components, active_rank: mean number of active components per example, and their rank.
      error: distance of the output from the target's, as the training measures it.
      quality: accuracy, or mean squared error, against the labels; None without labels.
      cross_entropy: against the labels, in nats; None without classes.
    """

    name: str
    active_components: float | None
    active_rank: float | None
    error: float
    quality: float | None
    cross_entropy: float | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class Summary:
    """What `Decomposition.summary` finds; printed, it is a table.

    Attributes:
      num_examples: N.
      network, active, everything, nothing: the network itself, the active components, all
        components, and no component.
      baselines: the baselines at the active rank of the decomposition.
      quality_name: the measure against the labels; empty without labels.
      active_share: [C] share of the examples (or positions) that a component is active on.
      ranks: [C] rank of every component, over all sites.
      network_rank: rank of the target's decomposed matrices.
      unfaithfulness: `{site: ‖θ* − ΣP‖² / ‖θ*‖²}`; see `ranks.unfaithfulness`.
      empty_sites: sites whose weights are all zero.
      errors: the examples that the active components explain worst; None where the loss has no
        value for a single example.
      findings: warnings and notes on the numbers.
      other: rows of a targeted decomposition on the other data: with the remainder and the active
        components, and with the remainder alone.
      agreement: comparison of the initialisations trained side by side; None if there was only one.
    """

    num_examples: int
    network: Row
    active: Row
    everything: Row
    nothing: Row
    baselines: tuple[Row, ...]
    quality_name: str
    active_share: np.ndarray
    ranks: np.ndarray
    network_rank: int
    unfaithfulness: Mapping[str, float]
    empty_sites: tuple[str, ...]
    errors: ErrorSpread | None
    findings: tuple[Finding, ...]
    agreement: SeedMatrix | None = None
    other: tuple[Row, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, in the order of the table."""
        own = (self.network, self.active, self.everything, self.nothing)
        return (*own, *self.other, *self.baselines)

    @property
    def always_on(self) -> list[int]:
        """Components that are active on more than 95 % of the examples."""
        return np.flatnonzero(self.active_share > ALWAYS).tolist()

    @property
    def dead(self) -> list[int]:
        """Components that are active on no example."""
        return np.flatnonzero(self.active_share == 0).tolist()

    @property
    def cross_entropy_recovered(self) -> float | None:
        """Share of the cross entropy that the active components recover; None without classes.

        `(CE_nothing − CE_active) / (CE_nothing − CE_network)`, a share only where the network's
        cross entropy is below that of no component. None where one of them is infinite.
        """
        rows = (self.nothing, self.active, self.network)
        none, own, whole = (row.cross_entropy for row in rows)
        if none is None or own is None or whole is None or none == whole:
            return None
        if not np.isfinite([none, own, whole]).all():
            return None
        return (none - own) / (none - whole)

    @property
    def trivial(self) -> bool:
        """Whether it says little: components are always on, or most of the network is active."""
        return any(finding.kind == "trivial" for finding in self.findings)

    @property
    def remarks(self) -> tuple[str, ...]:
        """The findings as sentences."""
        return tuple(finding.text for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Everything as Python numbers, lists and dicts, ready for JSON."""
        derived = {
            "always_on": self.always_on,
            "dead": self.dead,
            "trivial": self.trivial,
            "cross_entropy_recovered": self.cross_entropy_recovered,
        }
        return _plain(self) | derived

    def row(self, name: str) -> Row:
        """A row by its name.

        Raises:
          UserError: no row has this name.
        """
        rows = {row.name: row for row in self.rows}
        if name not in rows:
            raise UserError(f"the summary has no row {name!r}; there are {list(rows)}")
        return rows[name]

    def __repr__(self) -> str:
        return "\n".join([tables.text(*_table(self)), *_notes(self)])

    def _repr_html_(self) -> str:
        return tables.as_html("Summary", *_table(self), _notes(self))


def _listed(components: Sequence[int]) -> str:
    shown = ", ".join(map(str, components[:10])) + (", ..." if len(components) > 10 else "")
    return f"{len(components)} ({shown})" if components else "none"


def _table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    columns = [
        ("components", "active_components"),
        ("rank", "active_rank"),
        ("output error", "error"),
        (summary.quality_name, "quality"),
    ]
    if summary.network.cross_entropy is not None:
        columns.append(("cross entropy", "cross_entropy"))
    shown = [(title, field) for title, field in columns if title]
    head = ["switched on", *(title for title, _ in shown)]
    rows = [
        [row.name, *(tables.number(getattr(row, field)) for _, field in shown)]
        for row in summary.rows
    ]
    return head, rows


def _notes(summary: Summary) -> list[str]:
    notes = [
        f"Components and ranks are means over {summary.num_examples} examples, or over their "
        "positions where components are chosen for positions.",
        f"Always on: {_listed(summary.always_on)}. Never on: {_listed(summary.dead)}.",
    ]
    shares = {s: v for s, v in summary.unfaithfulness.items() if s not in summary.empty_sites}
    if shares:
        site, worst = max(shares.items(), key=lambda item: item[1])
        notes.append(
            f"The components miss {worst:.2g} of the squared weights of {site}, the worst site."
        )
    notes += _on_cross_entropy(summary)
    if summary.errors is not None and summary.errors.worst:
        notes.append(summary.errors.sentence())
    if summary.agreement is not None:
        notes.append(summary.agreement.sentence())
    return [*notes, *summary.remarks]


def _on_cross_entropy(summary: Summary) -> list[str]:
    share, whole, none = (
        summary.cross_entropy_recovered,
        summary.network.cross_entropy,
        summary.nothing.cross_entropy,
    )
    if share is None or whole is None or none is None:
        return []
    if whole > none:
        return [
            f"The network's cross entropy, {whole:.3g}, is larger than that of no component, "
            f"{none:.3g}: there is nothing to recover. Check that the labels are those of the "
            "network's classes."
        ]
    return [
        f"The active components recover {share:.1%} of the cross entropy that the network gains "
        "over no component."
    ]


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, and arrays as lists."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
