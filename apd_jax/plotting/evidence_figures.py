"""Figures of the evidence.

Letters: S decompositions.
"""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apd_jax.evaluation.compare import SeedMatrix
from apd_jax.evaluation.evidence import Evidence
from apd_jax.evaluation.evidence.result import BASELINES, label
from apd_jax.evaluation.evidence.verdicts import line_limits
from apd_jax.plotting import style

_LOWEST = 1e-5  # share of the distance with no component below which distances are drawn there
_COLORS = {
    "": style.ORANGE,
    "svd": style.BLUE,
    "bundled": style.SKY,
    "neurons": style.GREEN,
}


@style.styled
def distances(found: Evidence) -> Figure:
    """Draw every distance on one axis, those of the baselines next to the decomposition's."""
    names = [n for n in found.distances if n.partition("_")[0] not in BASELINES and n != "zero"]
    figure = style.new_figure(0.9 + 0.36 * len(names))
    axes = figure.subplots()
    for place, name in enumerate(names):
        _point(axes, found, name, place, "")
        for offset, baseline in enumerate(BASELINES, start=1):
            if f"{baseline}_{name}" in found.numbers:
                _point(axes, found, f"{baseline}_{name}", place + 0.18 * offset, baseline)
    limits = line_limits(found)
    judged = [
        (limits[name] * found.scale, place) for place, name in enumerate(names) if name in limits
    ]
    axes.plot(*zip(*judged, strict=True), "|", color=style.INK, markersize=11, label="limit")
    axes.axvline(found.scale, color=style.GREY, linewidth=0.8, linestyle=":")
    axes.text(found.scale, -0.6, "no component", color=style.GREY, ha="center", va="bottom")
    axes.set_yticks(range(len(names)), [textwrap.fill(label(name), 24) for name in names])
    axes.set_ylim(len(names) - 0.2, -0.6)
    axes.set_xscale("log")
    unit = "KL, nats" if found.distance == "kl" else "MSE over that of a zero output"
    axes.set_xlabel(f"distance from the network's output ({unit})")
    axes.grid(axis="x", color=style.FAINT, linewidth=0.5)
    for series, text in ({"": "components"} | BASELINES).items():
        if not series or f"{series}_own" in found.numbers:
            axes.plot([], [], "o", color=_COLORS[series], label=text)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=5)
    return figure


def _point(axes: Axes, found: Evidence, name: str, place: float, series: str) -> None:
    value, error = found.numbers[name]
    lowest = _LOWEST * found.scale
    shown = max(value, lowest)
    bar = [[min(error or 0.0, shown - lowest)], [error or 0.0]]
    axes.errorbar(
        shown,
        place,
        xerr=bar,
        fmt="<" if value < lowest else "o",
        color=_COLORS[series],
        markersize=6 if not series else 4,
        linewidth=1.2,
    )


@style.styled
def seeds(found: SeedMatrix) -> Figure:
    """Draw MMCS and the matched share of every pair of decompositions."""
    count = len(found.names)
    figure = style.new_figure(min(1.2 + 0.45 * count, 7.0))
    pairs = (("MMCS, row to column", found.mmcs), ("share with a partner", found.matched))
    for axes, (title, matrix) in zip(figure.subplots(1, 2), pairs, strict=True):
        image = axes.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
        axes.set_title(title)
        axes.set_xticks(range(count), found.names)
        axes.set_yticks(range(count), found.names)
        if count <= 12:
            for (i, j), value in np.ndenumerate(matrix):
                color = "white" if value > 0.6 else style.INK
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, fontsize=7)
        figure.colorbar(image, ax=axes, shrink=0.8)
    return figure
