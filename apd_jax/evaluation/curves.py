"""Output error as a function of k, for the components and for baselines.

Letters: N examples, C components.
"""

from typing import Any, NamedTuple

import numpy as np

from apd_jax.components import Components
from apd_jax.evaluation import baselines, ranks, seen
from apd_jax.evaluation.labels import quality
from apd_jax.evaluation.model import ComponentModel
from apd_jax.evaluation.seen import Seen
from apd_jax.evaluation.summary import Summary
from apd_jax.sites import PyTree

_POINTS = 8


class Curve(NamedTuple):
    """Points of a curve in ascending order of k.

    Attributes:
      k: active components per example.
      active_rank: their mean rank.
      error: distance of the output from the target's.
      quality: accuracy or error against labels; None without labels.
    """

    k: list[float]
    active_rank: list[float]
    error: list[float]
    quality: list[float | None]


def error_curves(
    decomposition: ComponentModel, x: PyTree, found: Seen, summary: Summary, labels: Any = None
) -> dict[str, Curve]:
    """Curves of `"components"` and of every baseline that is not too large."""
    target, settings = decomposition.target, decomposition.settings
    curves = {
        "components": _curve(
            decomposition, decomposition.components, x, found, summary.ranks, labels
        )
    }
    active_rank = summary.active.active_rank or 0.0
    for name in baselines.BASELINES:
        components = baselines.baseline(target, name)
        if components is None:
            continue
        values = ranks.singular_values(components)
        own = ranks.ranks(values, ranks.target_singular_values(target))
        k = float(np.clip(active_rank, 1.0, len(own)))
        objective = decomposition.objective.with_topk(k, selection="batch", distil=False)
        there = seen.see(objective, target, components, x, settings.batch_size)
        curves[name] = _curve(decomposition, components, x, there, own, labels)
    return curves


def _curve(
    decomposition: ComponentModel,
    components: Components,
    x: PyTree,
    found: Seen,
    own_ranks: np.ndarray,
    labels: Any,
) -> Curve:
    settings, target = decomposition.settings, decomposition.target
    curve = Curve([], [], [], [])
    middle = max(found.mask.sum(axis=1).mean(), 1e-6)
    total = found.mask.shape[1]
    for k in _values(middle, total, min(settings.batch_size, len(found.mask))):
        mask, outputs = seen.outputs_at(k, target, components, x, found, settings.batch_size)
        curve.k.append(k)
        curve.active_rank.append(float((mask @ own_ranks).mean()))
        curve.error.append(seen.distance(decomposition.objective, outputs, found.outputs))
        curve.quality.append(quality(outputs, labels))
    return curve


def _values(middle: float, total: int, rows: int) -> list[float]:
    """Values of k around the one in use, each large enough to select a pair in every block."""
    lowest = max(middle / 8, 1.5 / rows)
    highest = min(middle * 8, float(total))
    return np.unique(np.geomspace(min(lowest, highest), highest, _POINTS)).tolist()
