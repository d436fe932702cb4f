"""The measurements of a summary: the network run with the active components, all, none, baselines.

Letters: N examples, C components.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from apd_jax import sites
from apd_jax.components import num_components
from apd_jax.config_fields import values
from apd_jax.errors import UserError
from apd_jax.evaluation import baselines, findings, ranks, seen, worst
from apd_jax.evaluation.labels import label_array, quality_name
from apd_jax.evaluation.measured import Measured, MeasuredSums
from apd_jax.evaluation.model import ComponentModel
from apd_jax.evaluation.seen import Seen
from apd_jax.evaluation.summary import Row, Summary
from apd_jax.masked.forward import masked_apply
from apd_jax.sites import PyTree


def summarise(
    decomposition: ComponentModel,
    x: PyTree,
    labels: Any = None,
    names: str | Sequence[str] | None = ("svd", "neurons"),
    other: PyTree | None = None,
) -> Summary:
    """Measure a decomposition on examples; see `Decomposition.summary`."""
    names = values.names("baselines", names)
    unknown = sorted(set(names) - set(baselines.BASELINES))
    if unknown:
        raise UserError(f"no baseline {unknown[0]!r}; there are {sorted(baselines.BASELINES)}")
    if other is not None and not decomposition.objective.targeted:
        raise UserError(
            "other= is measured of a targeted decomposition, which decompose(..., other=...) "
            "makes, and this is none: leave it out"
        )
    labels = label_array(decomposition.target, x, labels, decomposition.objective)
    return summarise_seen(decomposition, x, decomposition.see(x, labels), labels, names, other)


def summarise_seen(
    decomposition: ComponentModel,
    x: PyTree,
    found: Seen,
    labels: Any,
    names: Sequence[str],
    other: PyTree | None = None,
) -> Summary:
    """`summarise`, given the attributions, masks and outputs of the examples."""
    target, components = decomposition.target, decomposition.components
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
    elsewhere = _on_other_data(decomposition, other, own_ranks)
    share = found.mask.mean(axis=0)
    empty = tuple(ranks.empty_sites(target))
    measured = [found.network, found.active, everything, nothing]
    return Summary(
        num_examples=sites.batch_size(x),
        network=_row("network", found.network, None, whole),
        active=active,
        everything=_row("all components", everything, len(own_ranks), own_ranks.sum()),
        nothing=_row("no components", nothing, 0, 0),
        baselines=tuple(row for row in others.values() if row is not None),
        quality_name=quality_name(labels),
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
            *findings.infinite([one.cross_entropy for one in measured]),
            *findings.on_other_data(elsewhere),
            *(findings.omitted(name) for name, row in others.items() if row is None),
            *findings.on_positions(decomposition.settings),
        ),
        agreement=decomposition.agreement(),
        other=() if elsewhere is None else elsewhere,
    )


def _row(name: str, measured: Measured, components: float | None, rank: float | None) -> Row:
    count, rank = (None if n is None else float(n) for n in (components, rank))
    return Row(name, count, rank, *measured)


def _on_other_data(
    decomposition: ComponentModel, other: PyTree | None, own_ranks: np.ndarray
) -> tuple[Row, ...] | None:
    """Measure a targeted decomposition on the other data.

    Returns:
      The rows; empty if the decomposition is not targeted, None if there are no such examples (a
      loaded decomposition has none).
    """
    rule = decomposition.objective
    other = decomposition.other if other is None else other
    if not rule.targeted:
        return ()
    if other is None:
        return None
    target, components = decomposition.target, decomposition.components
    size, count = decomposition.settings.batch_size, sites.batch_size(other)
    active, nothing = (MeasuredSums(rule, target, count) for _ in range(2))
    masks = []
    for place, block in seen.blocks(other, size):
        _, mask, outputs = seen.look(rule, target, components, block)
        for sums, own in ((active, mask), (nothing, jnp.zeros_like(mask))):
            whole = jnp.ones(mask.shape[:-1])
            sums.add(place, block, masked_apply(target, components, block, own, whole), outputs)
        kept = seen.counted_rows(rule, block, mask.shape[:-1])
        masks.append(np.asarray(mask).reshape(-1, mask.shape[-1])[kept])
    chosen = np.concatenate(masks)
    on = float(chosen.sum(axis=1).mean()), float((chosen @ own_ranks).mean())
    return (
        _row("other data: remainder, active components", active.result(), *on),
        _row("other data: remainder alone", nothing.result(), 0, 0),
    )


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
        k = float(min(active_rank, num_components(components)))
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
