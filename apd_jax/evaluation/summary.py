"""A decomposition in numbers: what is active, what it explains, and whether it is trivial.

Letters: N examples, T positions, R rows, C components.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apd_jax import sites
from apd_jax.components import num_components
from apd_jax.errors import UserError
from apd_jax.evaluation import baselines, findings, ranks, seen, tables, worst
from apd_jax.evaluation import labels as against
from apd_jax.evaluation.compare import SeedMatrix
from apd_jax.evaluation.findings import ALWAYS, Finding
from apd_jax.evaluation.model import ComponentModel
from apd_jax.evaluation.seen import Seen
from apd_jax.evaluation.tally import Measured
from apd_jax.evaluation.worst import ErrorSpread
from apd_jax.sites import PyTree
from apd_jax.training import presets


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
      findings: what a reader has to know besides.
      agreement: what the initialisations side by side found, compared; None where there was one.
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

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, in the order of the table."""
        return (self.network, self.active, self.everything, self.nothing, *self.baselines)

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

        `(CE_nothing − CE_active) / (CE_nothing − CE_network)`.
        """
        rows = (self.nothing, self.active, self.network)
        none, own, whole = (row.cross_entropy for row in rows)
        if none is None or own is None or whole is None or none == whole:
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
        """All of it in Python's numbers, lists and dicts, as JSON takes them."""
        lists = {"always_on": self.always_on, "dead": self.dead, "trivial": self.trivial}
        return _plain(self) | lists

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
        return tables.summary_text(self)

    def _repr_html_(self) -> str:
        return tables.summary_html(self)


def summarise(
    decomposition: ComponentModel,
    x: PyTree,
    labels: Any = None,
    names: str | Sequence[str] = ("svd", "neurons"),
) -> Summary:
    """Measure a decomposition on examples; see `Decomposition.summary`."""
    names = (names,) if isinstance(names, str) else names
    labels = against.as_array(decomposition.target, x, labels)
    return summarise_seen(decomposition, x, decomposition.see(x, labels), labels, names)


def summarise_seen(
    decomposition: ComponentModel, x: PyTree, found: Seen, labels: Any, names: Sequence[str]
) -> Summary:
    """`summarise`, given the attributions, masks and outputs of the examples."""
    target, components = decomposition.target, decomposition.components
    unknown = sorted(set(names) - set(baselines.BASELINES))
    if unknown:
        raise UserError(f"no baseline {unknown[0]!r}; there are {sorted(baselines.BASELINES)}")
    target_values = ranks.target_singular_values(target)
    own_ranks = ranks.ranks(ranks.singular_values(components), target_values)
    whole = ranks.network_rank(target_values)
    active = _row(
        "active components",
        found.active,
        found.mask.sum(axis=1).mean(),
        (found.mask @ own_ranks).mean(),
    )
    rule, size = decomposition.objective, decomposition.settings.batch_size
    everything, nothing = (
        seen.at_weight(weight, rule, target, components, x, size, labels) for weight in (1.0, 0.0)
    )
    others = _baselines(decomposition, x, labels, active.active_rank or 0.0, names)
    share = found.mask.mean(axis=0)
    empty = tuple(ranks.empty_sites(target))
    return Summary(
        num_examples=sites.batch_size(x),
        network=_row("network", found.network, None, whole),
        active=active,
        everything=_row("all components", everything, len(own_ranks), own_ranks.sum()),
        nothing=_row("no components", nothing, 0, 0),
        baselines=tuple(row for row in others.values() if row is not None),
        quality_name=against.quality_name(labels),
        active_share=share,
        ranks=own_ranks,
        network_rank=whole,
        unfaithfulness=ranks.unfaithfulness(target, components),
        empty_sites=empty,
        errors=worst.spread(found),
        findings=(
            *findings.trivial(rule, share, active.active_rank or 0.0, whole),
            *map(findings.empty, empty),
            *findings.not_finite(found.scores),
            *worst.untold(found),
            *findings.ignored(labels),
            *(findings.omitted(name) for name, row in others.items() if row is None),
            *(Finding("settings", text) for text in [presets.says(decomposition.settings)] if text),
        ),
        agreement=decomposition.agreement(),
    )


def _row(name: str, measured: Measured, components: float | None, rank: float | None) -> Row:
    count, rank = (None if n is None else float(n) for n in (components, rank))
    return Row(name, count, rank, *measured)


def _baselines(
    decomposition: ComponentModel,
    x: PyTree,
    labels: Any,
    active_rank: float,
    names: Sequence[str],
) -> dict[str, Row | None]:
    """Rows of baselines with as many active components of rank one; None for one too large."""
    rows: dict[str, Row | None] = {}
    for name in names:
        components = baselines.baseline(decomposition.target, name)
        if components is None:
            rows[name] = None
            continue
        k = max(float(min(active_rank, num_components(components))), 1.0)
        (point,) = seen.points(
            [k],
            decomposition.objective,
            decomposition.target,
            components,
            x,
            decomposition.settings.batch_size,
            labels=labels,
        )
        rows[name] = _row(name, point.measured, point.active, point.active)
    return rows


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, and arrays as lists."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
