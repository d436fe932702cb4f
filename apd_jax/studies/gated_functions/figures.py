"""Figures of decomposed gated functions: curves, networks, and functions by component.

Letters: C components, n functions, H neurons of a layer, D residual width.
"""

from typing import NamedTuple

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch

from apd_jax.plotting import share_maps, style
from apd_jax.studies.gated_functions.measures import GatedArrays, row_units, supports

FOREIGN = "#A020A0"  # weights where the target has none
_FUNCTION_COLORS = (style.BLUE, style.ORANGE, style.GREEN, style.VERMILION, style.SKY, "#8C6D1F")
_INVISIBLE = 0.03
_MOST_PANELS = 12
_MOST_CURVES = 24


def function_color(function: int) -> str:
    """The colour of a function; purple is reserved for weights that the target lacks."""
    return _FUNCTION_COLORS[function % len(_FUNCTION_COLORS)]


@style.styled
def functions(arrays: GatedArrays) -> Figure:
    """Draw up to 24 functions: the target's output with one bit on, and one component's."""
    count = min(len(arrays.curves), _MOST_CURVES)
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = style.new_figure(2.5 * rows + 0.4, width=max(2.5 * columns, 5.0))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for function, axes in enumerate(grid.ravel()):
        if function >= count:
            axes.set_visible(False)
            continue
        color = function_color(function)
        target, found = arrays.curves[function], arrays.topk_curves[function]
        axes.plot(arrays.points, target, color=color, linewidth=5, alpha=0.3)
        axes.plot(arrays.points, found, color=style.INK, linewidth=1.3, dashes=(4, 2))
        axes.axhline(0, color=style.FAINT, linewidth=0.6, zorder=0)
        axes.set_title(rf"$F_{{{function + 1}}}$: {_holder(arrays, function)}")
        axes.margins(x=0)
        room = 0.5 * max(np.ptp(target), 0.2)
        # A diverging curve is cut off; one that stays near 0 is not.
        low, high = min(target.min() - room, 0), max(target.max() + room, 0)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    for axes in grid[-1]:
        axes.set_xlabel("$x$")
    for axes in grid[:, 0]:
        axes.set_ylabel("output")
    handles = [
        Line2D([], [], color=style.GREY, linewidth=5, alpha=0.4, label="target"),
        Line2D([], [], color=style.INK, linewidth=1.3, dashes=(4, 2), label="top-k APD"),
    ]
    if count < len(arrays.curves):
        figure.supxlabel(f"The first {count} of {len(arrays.curves)} functions")
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def _holder(arrays: GatedArrays, function: int) -> str:
    component = arrays.assignment[function]
    if component < 0:
        return "no component"
    return f"component {component}, purity {arrays.purity[function]:.3f}"


class _Panel(NamedTuple):
    """A network to draw: title, colour of the title, `{site: [D, H] or [H, D]}`."""

    title: str
    color: str
    matrices: dict[str, np.ndarray]


class _Places(NamedTuple):
    """Positions in every panel.

    Attributes:
      order: neurons from left to right, by function and then by knot, `{layer: [H]}`.
      neurons: horizontal position of each neuron, `{layer: [H]}`.
      stream: horizontal positions of the residual stream's entries, [D].
    """

    order: dict[str, np.ndarray]
    neurons: dict[str, np.ndarray]
    stream: np.ndarray


@style.styled
def networks(arrays: GatedArrays) -> Figure:
    """Draw the target and each function's component, weights coloured by function.

    The bottom row has x, the control bits and the output as inputs, the middle row the neurons of
    each layer, and the top row the same entries as outputs. The strength of a line is its weight
    relative to the typical weight of its kind in the target. Purple lines are weights where the
    target has none.
    """
    panels = _panels(arrays)
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = style.new_figure(2.75 * rows + 0.35)
    grid = figure.subplots(rows, columns, squeeze=False)
    places = _places(arrays)
    own = supports(arrays.target, arrays.owners, len(arrays.curves))
    units = row_units(arrays.target, len(arrays.curves))
    for axes in grid.ravel()[len(panels) :]:
        axes.set_visible(False)
    for panel, axes in zip(panels, grid.ravel(), strict=False):
        _draw_network(axes, panel, places, own, units, arrays)
    _name_rows(grid[0, 0], len(arrays.curves), places)
    handles = [
        Line2D([], [], color=function_color(i), linewidth=2, label=f"weights of $F_{{{i + 1}}}$")
        for i in range(len(arrays.curves))
    ]
    handles.append(Line2D([], [], color=FOREIGN, linewidth=2, label="no weight in the target"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    return figure


def _panels(arrays: GatedArrays) -> list[_Panel]:
    """Panels of the target, the functions' components, and others by size; at most 12."""
    panels = [_Panel("target", style.INK, arrays.target)]
    norms = sum(np.square(m).sum(axis=(1, 2)) for m in arrays.components.values())
    assigned = [c for c in arrays.assignment if c >= 0]
    others = [c for c in np.argsort(-norms) if c not in assigned]
    for c in [*assigned, *others][: _MOST_PANELS - 1]:
        held = np.flatnonzero(arrays.assignment == c)
        title, color = f"component {c}: no function", style.GREY
        if len(held):
            title = f"component {c}: $F_{{{held[0] + 1}}}$, purity {arrays.purity[held[0]]:.3f}"
            color = function_color(held[0])
        panels.append(_Panel(title, color, {s: m[c] for s, m in arrays.components.items()}))
    return panels


def _places(arrays: GatedArrays) -> _Places:
    """The positions of layers side by side, with a gap between them."""
    order, neurons = {}, {}
    total = sum(len(own) for own in arrays.owners.values())
    gap = 0.06
    step = (0.94 - gap * (len(arrays.owners) - 1)) / max(total - 1, 1)
    start = 0.03
    for layer, own in arrays.owners.items():
        writes = arrays.target[f"{layer}/mlp_out/kernel"]
        order[layer] = np.lexsort((np.arange(len(own)), own))
        neurons[layer] = np.empty(len(own))
        neurons[layer][order[layer]] = start + step * np.arange(len(own))
        start += step * len(own) + gap
    return _Places(order, neurons, np.linspace(0.12, 0.88, writes.shape[1]))


def _draw_network(axes: Axes, panel: _Panel, places: _Places, own, units, arrays) -> None:
    style.bare(axes)
    axes.set_title(panel.title, color=panel.color)
    for layer, at in places.neurons.items():
        box = (at.min() - 0.02, 0.87), at.max() - at.min() + 0.04, 0.26
        axes.add_patch(
            FancyBboxPatch(
                *box,
                boxstyle="round,pad=0,rounding_size=0.02",
                facecolor=style.PALE,
                edgecolor="none",
                zorder=0,
            )
        )
        reads, writes = f"{layer}/mlp_in/kernel", f"{layer}/mlp_out/kernel"
        for site, below, above, y in (
            (reads, places.stream, at, 0),
            (writes, at, places.stream, 1),
        ):
            strength = np.abs(panel.matrices[site]) / units[site]
            _draw_lines(axes, strength, _line_colors(own[site]), below, above, y)
        shades = [function_color(f) for f in arrays.owners[layer]]
        axes.scatter(at, np.ones_like(at), s=9, color=shades, zorder=4, linewidths=0)
    # x, the bits, and the output
    shades = [style.INK, *(function_color(i) for i in range(len(arrays.curves))), style.GREY]
    for y in (0, 2):
        heights = np.full(len(places.stream), y)
        axes.scatter(places.stream, heights, s=34, color=shades, zorder=4, linewidths=0)
    axes.set(xlim=(0, 1), ylim=(-0.32, 2.32))


def _line_colors(own: np.ndarray) -> np.ndarray:
    """The colour of every weight, [d_in, d_out, 3], from its function [n, d_in, d_out]."""
    palette = colors.to_rgba_array([function_color(i) for i in range(len(own))] + [FOREIGN])
    whose = np.where(own.any(axis=0), own.argmax(axis=0), len(own))
    return palette[whose][..., :3]


def _draw_lines(axes, strength, shades, below, above, y) -> None:
    """Draw the lines of a matrix of relative weights [rows, columns], strong ones on top."""
    starts, ends = np.indices(strength.shape)
    strength = np.clip(strength, 0, 1).ravel()
    shown = [i for i in np.argsort(strength, kind="stable") if strength[i] > _INVISIBLE]
    lines = [[(below[starts.flat[i]], y), (above[ends.flat[i]], y + 1)] for i in shown]
    rgba = [(*shades.reshape(-1, 3)[i], 0.15 + 0.8 * strength[i]) for i in shown]
    widths = [0.25 + 1.0 * strength[i] for i in shown]
    axes.add_collection(LineCollection(lines, colors=rgba, linewidths=widths, zorder=2))


def _name_rows(axes: Axes, count: int, places: _Places) -> None:
    """Name the entries of the residual stream and the layers in the first panel."""
    bit = "bit " if count <= 5 else ""
    names = ["$x$", *(f"{bit}{i + 1}" for i in range(count)), "out"]
    for y, side in ((-0.13, "top"), (2.13, "bottom")):
        for place, name in zip(places.stream, names, strict=True):
            axes.text(place, y, name, ha="center", va=side, fontsize=7, color="#555555")


@style.styled
def function_map(arrays: GatedArrays) -> Figure:
    """Draw the share of every function's weight in each component, and each function's purity.

    A cell is `<P_c, θ_i> / ‖θ_i‖²`. The cells of a row sum to 1 if the components sum to the
    target.
    """
    count = len(arrays.curves)
    first = [c for c in arrays.assignment if c >= 0]
    order = [*first, *(c for c in range(len(arrays.shares)) if c not in first)]
    figure = style.new_figure(max(0.42 * count + 1.3, 2.4), width=8.0)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.6, 1))
    share_maps.draw(figure, left, arrays.shares[order].T, "share of the weights")
    left.set_xlabel("component, sorted by function")
    left.set_xticks(np.arange(len(order)), order)
    left.set_yticks(np.arange(count), [f"$F_{{{i + 1}}}$" for i in range(count)])
    shades = [function_color(i) for i in range(count)]
    right.barh(np.arange(count), arrays.purity, color=shades, height=0.6)
    for i, purity in enumerate(arrays.purity):
        right.text(min(purity, 0.8) - 0.02, i, f"{purity:.3f}", ha="right", va="center", fontsize=8)
    right.axvline(1, color=style.FAINT, linewidth=1, zorder=0)
    right.set(xlim=(0, 1.03), xlabel="purity")
    right.tick_params(axis="y", length=0)
    return figure


FIGURES = {
    "networks": lambda numbers, arrays: networks(arrays),
    "functions": lambda numbers, arrays: functions(arrays),
    "function_map": lambda numbers, arrays: function_map(arrays),
}
