"""A decomposition in numbers: what is active, what it explains, and whether it is worth anything.

Letters: N examples, T positions, R rows, C components.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from apd_jax import sites
from apd_jax.errors import UserError
from apd_jax.evaluation import baselines, ranks, seen, tables
from apd_jax.evaluation.seen import Seen
from apd_jax.masked import forward
from apd_jax.sites import PyTree

ALWAYS = 0.95  # active on a larger share of the examples: always on
MOST = 0.5  # an active rank above this share of the network's: most of it


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to run the network.

    Attributes:
      name: what was on.
      active_components, active_rank: how many, and of which rank, on an example on average.
      error: distance of the output from the target's, as the training measures it.
      quality: accuracy, or mean squared error, against the labels; None without labels.
    """

    name: str
    active_components: float | None
    active_rank: float | None
    error: float
    quality: float | None


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `Decomposition.summary` finds; printed, it is a table.

    Attributes:
      num_examples: N.
      rows: the network, the active components, all of them, none, and the baselines at the same
        active rank.
      quality_name: what the labels were compared by; empty without labels.
      active_share: [C] share of the examples (or positions) that a component is active on.
      ranks: [C] rank of every component, over all sites.
      network_rank: rank of the target's decomposed matrices.
      unfaithfulness: `{site: ‖θ* − ΣP‖² / ‖θ*‖²}`.
      remarks: sentences on what is wrong with it.
    """

    num_examples: int
    rows: tuple[Row, ...]
    quality_name: str
    active_share: np.ndarray
    ranks: np.ndarray
    network_rank: int
    unfaithfulness: Mapping[str, float]
    remarks: tuple[str, ...]

    @property
    def always_on(self) -> list[int]:
        """Components that are active on more than 95 % of the examples."""
        return np.flatnonzero(self.active_share > ALWAYS).tolist()

    @property
    def dead(self) -> list[int]:
        """Components that are active on none."""
        return np.flatnonzero(self.active_share == 0).tolist()

    @property
    def trivial(self) -> bool:
        """Whether it says little: components are always on, or most of the network is active."""
        return any(remark.startswith("Trivial") for remark in self.remarks)

    def row(self, name: str) -> Row:
        """A row by its name."""
        return next(row for row in self.rows if row.name == name)

    def __repr__(self) -> str:
        return tables.summary_text(self)

    def _repr_html_(self) -> str:
        return tables.summary_html(self)


def summarise(
    decomposition: Any,
    x: PyTree,
    labels: Any = None,
    names: str | Sequence[str] = ("svd", "neurons"),
) -> Summary:
    """Measure a decomposition on examples; see `Decomposition.summary`."""
    names = (names,) if isinstance(names, str) else names
    return summarise_seen(decomposition, x, decomposition.see(x), labels, names)


def summarise_seen(
    decomposition: Any, x: PyTree, found: Seen, labels: Any, names: Sequence[str]
) -> Summary:
    """`summarise` with what was seen of the examples already."""
    target, components = decomposition.target, decomposition.components
    objective = decomposition.objective
    unknown = sorted(set(names) - set(baselines.BASELINES))
    if unknown:
        raise UserError(f"no baseline {unknown[0]!r}; there are {sorted(baselines.BASELINES)}")
    target_values = ranks.target_singular_values(target)
    own_ranks = ranks.ranks(ranks.singular_values(components), target_values)
    active = (found.mask.sum(axis=1).mean(), (found.mask @ own_ranks).mean())

    def row(name, outputs, active=(None, None)):
        error = seen.distance(objective, outputs, found.outputs)
        numbers = (None if number is None else float(number) for number in active)
        return Row(name, *numbers, error, quality(outputs, labels))

    total = (len(own_ranks), own_ranks.sum())
    rows = [
        row("network", found.outputs, (None, ranks.network_rank(target_values))),
        row("active components", found.active, active),
        row("all components", in_blocks(decomposition, x, 1.0), total),
        row("no components", in_blocks(decomposition, x, 0.0), (0, 0)),
    ]
    remarks = []
    for name in names:
        others = baselines.baseline(target, name)
        if others is None:
            remarks.append(f"The baseline {name} is left out: the network is too large for it.")
            continue
        k = min(active[1], next(iter(others.values())).num_components)
        objective_k = objective.with_topk(max(float(k), 1.0), selection="batch", distil=False)
        size = decomposition.settings.batch_size
        there = seen.see(objective_k, target, others, x, size)
        count = there.mask.sum(axis=1).mean()
        rows.append(row(name, there.active, (count, count)))
    share = found.mask.mean(axis=0)
    return Summary(
        num_examples=sites.batch_size(x),
        rows=tuple(rows),
        quality_name=quality_name(found.outputs, labels),
        active_share=share,
        ranks=own_ranks,
        network_rank=ranks.network_rank(target_values),
        unfaithfulness=ranks.unfaithfulness(target, components),
        remarks=tuple(_trivial(objective, share, active[1], ranks.network_rank(target_values)))
        + tuple(remarks),
    )


def in_blocks(decomposition: Any, x: PyTree, weight: float) -> PyTree:
    """Outputs with every component at the same weight."""
    count = next(iter(decomposition.components.values())).num_components
    found = []
    for block in seen.blocks(x, decomposition.settings.batch_size):
        mask = np.full((sites.batch_size(block), count), weight, np.float32)
        found.append(
            forward.masked_apply(decomposition.target, decomposition.components, block, mask)
        )
    return seen.joined(found)


def _trivial(objective: Any, share: np.ndarray, active_rank: float, whole: int) -> list[str]:
    """Sentences on why a decomposition says little."""
    if not objective.selects:
        return []
    counted = share[: len(share) - 1] if objective.distil else share
    always = np.flatnonzero(counted > ALWAYS).tolist()
    found = []
    if always:
        what = f"component {always[0]} is" if len(always) == 1 else f"components {always} are"
        found.append(
            f"Trivial: {what} active on more than {ALWAYS:.0%} of the examples, so that a part of "
            "the network is not told apart by what it is used for. Try components of lower rank, "
            "more of them, or a smaller topk."
        )
    if active_rank > MOST * whole:
        found.append(
            f"Trivial: what is active on an example has rank {active_rank:.1f} on average, of the "
            f"network's {whole}: that is most of the network. Try components of lower rank, a "
            "larger coefficient of simplicity, or a smaller topk."
        )
    return found


def quality_name(outputs: PyTree, labels: Any) -> str:
    """What outputs are compared with labels by."""
    if labels is None:
        return ""
    return "accuracy" if np.asarray(labels).dtype.kind in "iub" else "MSE to labels"


def quality(outputs: PyTree, labels: Any) -> float | None:
    """Accuracy against classes [N] or [N, T]; mean squared error against values.

    Outputs [N] or [N, 1] are one logit of an example: the class is 1 where it is above 0.

    Raises:
      UserError: labels of another shape.
    """
    if labels is None:
        return None
    labels = np.asarray(labels)
    (values, *more) = (np.asarray(leaf) for leaf in jax.tree.leaves(outputs))
    classes = labels.dtype.kind in "iub"
    logits = values[:, None] if values.ndim == 1 else values
    if more or labels.shape != (logits.shape[:-1] if classes else values.shape):
        raise UserError(
            f"labels have shape {labels.shape}; expected whole numbers {logits.shape[:-1]} for "
            f"classes, or values {values.shape}, for one array of outputs"
        )
    if classes and logits.shape[-1] == 1:
        return float(np.mean((logits[..., 0] > 0) == labels.astype(bool)))
    if classes:
        return float(np.mean(logits.argmax(axis=-1) == labels))
    return float(np.mean((values - labels) ** 2))
