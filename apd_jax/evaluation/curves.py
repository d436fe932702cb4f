"""Output error as a function of k, for the components and for baselines.

Letters: N examples, C components.
"""

from typing import Any, NamedTuple

import numpy as np

from apd_jax import sites
from apd_jax.components import Components
from apd_jax.evaluation import baselines, ranks, seen
from apd_jax.evaluation.model import ComponentModel
from apd_jax.evaluation.seen import Seen
from apd_jax.evaluation.summary import Summary
from apd_jax.sites import PyTree

_POINTS = 8
_LEAST = 1e-6  # k in the middle of a curve, where nothing is active


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
    target = decomposition.target
    middle = max(found.mask.sum(axis=1).mean(), _LEAST)
    curves = {
        "components": _curve(
            decomposition, decomposition.components, x, middle, summary.ranks, labels, found
        )
    }
    active_rank = summary.active.active_rank or 0.0
    for name in baselines.BASELINES:
        components = baselines.baseline(target, name)
        if components is None:
            continue
        values = ranks.singular_values(components)
        own = ranks.ranks(values, ranks.target_singular_values(target))
        k = float(np.clip(active_rank, _LEAST, len(own)))
        curves[name] = _curve(decomposition, components, x, k, own, labels)
    return curves


def _curve(
    decomposition: ComponentModel,
    components: Components,
    x: PyTree,
    middle: float,
    own_ranks: np.ndarray,
    labels: Any,
    found: Seen | None = None,
) -> Curve:
    """The curve of some components, around a number of active ones."""
    size = decomposition.settings.batch_size
    values = _values(middle, len(own_ranks), min(size, sites.batch_size(x)))
    points = seen.points(
        values,
        decomposition.objective,
        decomposition.target,
        components,
        x,
        size,
        found=found,
        ranks=own_ranks,
        labels=labels,
    )
    measured = [point.measured for point in points]
    return Curve(
        values,
        [point.rank for point in points],
        [one.error for one in measured],
        [one.quality for one in measured],
    )


def _values(middle: float, total: int, rows: int) -> list[float]:
    """Values of k around the one in use, each large enough to select a pair in every block."""
    lowest = max(middle / 8, 1.5 / rows)
    highest = min(middle * 8, float(total))
    return np.unique(np.geomspace(min(lowest, highest), highest, _POINTS)).tolist()
