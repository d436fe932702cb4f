"""Figures of a toy model of superposition and its components.

Letters: C components, F features, h hidden width.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apd_jax.plotting import networks, share_maps, style
from apd_jax.studies.label_errors import label_errors
from apd_jax.studies.tms.measures import TMSArrays

_FEW = 16
_MOST_NAMES = 100  # of components below an axis


@style.styled
def component_drawings(arrays: TMSArrays) -> Figure:
    """Draw the target, the sum of the components, and every component as a network.

    With two hidden dimensions a polygon of feature vectors is drawn above each network. The grey
    level of a line is the size of its weight relative to the target's largest. A component that
    holds one feature has one vector, as long as the target's (pale behind it), and one fan of dark
    lines from that input to the hidden units and back to the same output. Several fans mean merged
    features; a pale drawing means a component that does nothing.
    """
    panels = _panels(arrays)
    if len(panels) > _FEW:
        return networks.draw_panels(panels, columns=9, look=networks.SMALL)
    return networks.draw_panels(panels, columns=min(len(panels), 7), look=networks.LARGE)


def _panels(arrays: TMSArrays) -> list[networks.DrawnNetwork]:
    """Panels of target, sum, components by the features they hold, and others by size."""
    features = arrays.target.shape[0]
    colors = style.feature_colors(features)
    panels = [
        networks.DrawnNetwork("target", arrays.target, arrays.hidden),
        networks.DrawnNetwork(
            "sum", arrays.components.sum(axis=0), arrays.hidden_components.sum(axis=0)
        ),
    ]
    size = np.square(arrays.components).sum(axis=(1, 2))
    holds = np.isin(arrays.order, arrays.best_component[arrays.recovered])
    rest = arrays.order[~holds]
    for c in [*arrays.order[holds], *rest[np.argsort(-size[rest], kind="stable")]]:
        held = np.flatnonzero((arrays.best_component == c) & arrays.recovered)
        note = "  ".join(f"$x_{{{j}}}$" for j in held) or "no feature"
        color = style.INK if len(held) else style.GREY
        if len(held) == 1 and features <= len(style.FEW_COLORS):
            color = colors[held[0]]
        panels.append(
            networks.DrawnNetwork(
                f"component {c}", arrays.components[c], arrays.hidden_components[c], note, color
            )
        )
    return panels


@style.styled
def component_map(arrays: TMSArrays) -> Figure:
    """Draw how much of every feature's vector lies in every component.

    A cell is `P_{c,j} · W_j / ‖W_j‖²`; the cells of a row sum to 1. One dark cell in every row and
    at most one in every column mean one component per feature. Two dark cells in a column mean
    merged features, several in a row a split feature, and an empty column a dead component. The
    right panel has the cosine and the norm ratio of each feature's best component. Both are 1 in a
    perfect decomposition; a norm ratio below 1 means shrinkage.
    """
    features = arrays.target.shape[0]
    height = features * min(0.36, 5.4 / features) + 1.1
    figure = style.new_figure(max(height, 2.8))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.6, 1))
    _draw_shares(figure, left, arrays)
    _draw_quality(right, arrays)
    return figure


def _draw_shares(figure: Figure, axes: Axes, arrays: TMSArrays) -> None:
    table = arrays.shares[arrays.order].T
    features, count = table.shape
    share_maps.draw(figure, axes, table, r"share of the vector $W_j$")
    axes.set_ylabel("feature $j$")
    axes.set_xlabel("component, sorted by feature")
    axes.set_yticks(np.arange(0, features, 1 if features <= _FEW else max(5, features // 20)))
    every = -(-count // _MOST_NAMES)
    axes.set_xticks(
        np.arange(0, count, every),
        arrays.order[::every],
        fontsize=8 if count <= 30 else 6,
        rotation=90 if count > 20 else 0,
    )
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(style.FAINT)


def _draw_quality(axes: Axes, arrays: TMSArrays) -> None:
    features = arrays.target.shape[0]
    places = np.arange(features)
    cosine = arrays.cosines[arrays.best_component, places]
    ratio = arrays.norm_ratios[arrays.best_component, places]
    axes.axvline(1, color=style.FAINT, linewidth=1, zorder=0)
    size = 22 if features > _FEW else 40
    axes.scatter(cosine, places, s=size, color=style.BLUE, label="cosine", linewidths=0)
    axes.scatter(
        ratio, places, s=size, color=style.ORANGE, marker="D", label="norm ratio", linewidths=0
    )
    low, high = min(cosine.min(), ratio.min(), 0.75), max(ratio.max(), 1.05)
    axes.set_xlim(low - 0.05, high + 0.05)
    axes.set_xlabel("best component against $W_j$")
    axes.grid(axis="y", color=style.FAINT, linewidth=0.4)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handletextpad=0.2)


FIGURES = {
    "components": lambda numbers, arrays: component_drawings(arrays),
    "component_map": lambda numbers, arrays: component_map(arrays),
    "label_errors": lambda numbers, arrays: label_errors(arrays.label_errors),
}
