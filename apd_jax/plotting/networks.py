"""Drawn networks of a TMS: units as dots, weights as lines, panels in a grid.

Letters: F features, h hidden width, L hidden layers.
"""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from apd_jax.plotting import style

_INVISIBLE = 0.02
_TITLE_LINES = 3.6
_BELOW = 0.3  # inches for a line below all panels


class DrawnNetwork(NamedTuple):
    """One drawn network.

    Attributes:
      name: the title.
      weight: [F, h] matrix from inputs to hidden units, and back to the outputs.
      hidden: [L, h, h] matrices in between.
      note: a second line under the title.
      note_color: its colour.
    """

    name: str
    weight: np.ndarray
    hidden: np.ndarray
    note: str = ""
    note_color: str | np.ndarray = style.INK


class Look(NamedTuple):
    """Sizes in points, which depend on the number of panels on the page.

    Attributes:
      title: font size.
      thin, thick: width of the weakest and the strongest line.
      dot: area of a unit.
    """

    title: float
    thin: float
    thick: float
    dot: float


LARGE = Look(title=10, thin=0.4, thick=2.0, dot=60)
SMALL = Look(title=7.5, thin=0.2, thick=1.0, dot=3)


class Grid:
    """Places panels in rows of equal columns, each a title above stacked axes; sizes in inches.

    `figure.subplots` has no titles of two lines in two colours.
    """

    def __init__(self, columns: int, rows: int, *, heights: list[float], look: Look, margin: float):
        self.columns, self.heights, self.look, self.margin = columns, heights, look, margin
        self.title_height = _TITLE_LINES * look.title / 72
        self.band = sum(heights) + self.title_height
        self.column = (style.WIDTH - margin) / columns
        self.figure = style.new_figure(rows * self.band + _BELOW, constrained=False)

    @staticmethod
    def most_rows(heights: list[float], look: Look) -> int:
        """Number of rows that a page holds, at least one."""
        band = sum(heights) + _TITLE_LINES * look.title / 72
        return max(int((style.PAGE - _BELOW) / band), 1)

    def _corner(self, place: int) -> tuple[float, float]:
        row, column = divmod(place, self.columns)
        height = self.figure.get_size_inches()[1]
        return self.margin + column * self.column, height - row * self.band

    def axes(self, place: int) -> list[Axes]:
        """Add the axes of one panel, top to bottom."""
        width, height = self.figure.get_size_inches()
        left, top = self._corner(place)
        top -= self.title_height
        gap = 0.04 * self.column
        added = []
        for part in self.heights:
            top -= part
            box = (left + gap, top, self.column - 2 * gap, part)
            scaled = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
            added.append(self.figure.add_axes(scaled))
        return added

    def title(self, place: int, panel: DrawnNetwork) -> None:
        """Write a panel's name and the note below it."""
        width, height = self.figure.get_size_inches()
        left, top = self._corner(place)
        middle = (left + self.column / 2) / width
        for line, (text, color) in enumerate(
            [(panel.name, style.INK), (panel.note, panel.note_color)]
        ):
            y = top - (0.6 + 1.35 * line) * self.look.title / 72
            self.figure.text(
                middle,
                y / height,
                text,
                color=color,
                fontsize=self.look.title,
                ha="center",
                va="top",
            )


def draw_polygon(axes: Axes, weight: np.ndarray, target: np.ndarray) -> None:
    """Draw the feature vectors of one matrix [F, 2], in front of the target's in a pale colour."""
    style.bare(axes)
    reach = 1.15 * np.linalg.norm(target, axis=-1).max()
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    cross = [[(-reach, 0), (reach, 0)], [(0, -reach), (0, reach)]]
    axes.add_collection(LineCollection(cross, colors="#E4E4E4", linewidths=0.7, zorder=0))
    ghosts = [[(0, 0), tuple(row)] for row in target]
    axes.add_collection(LineCollection(ghosts, colors="#DADADA", linewidths=3.5, capstyle="round"))
    colors = style.feature_colors(len(weight))
    spokes = [[(0, 0), tuple(row)] for row in weight]
    axes.add_collection(LineCollection(spokes, colors=colors, linewidths=1.8, zorder=3))
    axes.scatter(weight[:, 0], weight[:, 1], s=26, color=colors, zorder=4, linewidths=0)


def draw_network(axes: Axes, panel: DrawnNetwork, target: DrawnNetwork, look: Look) -> None:
    """Draw inputs at the top, hidden layers, outputs at the bottom.

    A line's grey and width are the size of its weight relative to the largest weight of the
    target's matrix.
    """
    style.bare(axes)
    features, width = panel.weight.shape
    depth = len(panel.hidden)
    wide, narrow = np.linspace(0.09, 0.91, features), np.linspace(0.28, 0.72, width)
    rows = [wide, *[narrow] * (1 + depth), wide]
    steps = [panel.weight, *panel.hidden, panel.weight.T]
    scales = [np.abs(matrix).max() for matrix in (target.weight, *target.hidden, target.weight)]
    shaded = FancyBboxPatch(
        (0.18, -1.25 - depth),
        0.64,
        0.5 + depth,
        boxstyle="round,pad=0,rounding_size=0.06",
        facecolor=style.PALE,
        edgecolor="none",
        zorder=0,
    )
    axes.add_patch(shaded)
    for i, (step, scale) in enumerate(zip(steps, scales, strict=True)):
        _draw_lines(axes, rows[i], rows[i + 1], -i, np.abs(step) / scale, look)
    for i, places in enumerate(rows):
        shades = style.feature_colors(features) if i in (0, len(rows) - 1) else "#666666"
        heights = np.full(len(places), -i)
        axes.scatter(places, heights, s=look.dot, color=shades, zorder=4, linewidths=0)
    axes.set(xlim=(0, 1), ylim=(-len(rows) + 0.7, 0.3))


def name_layers(axes: Axes, depth: int) -> None:
    """Write the names of the rows of units to the left of a drawn network."""
    names = ["inputs", *["hidden"] * (1 + depth), "outputs"]
    for i, name in enumerate(names):
        axes.text(-0.04, -i, name, ha="right", va="center", fontsize=8, color="#555555")


def _draw_lines(axes, above, below, y, sizes, look: Look) -> None:
    """Lines of one matrix [rows, columns] of relative weights between two rows of units."""
    starts, ends = np.indices(sizes.shape)
    strength = np.clip(sizes.ravel(), 0, 1)
    # Strong lines are drawn last, over the weak ones.
    order = [i for i in np.argsort(strength, kind="stable") if strength[i] > _INVISIBLE]
    lines = [[(above[starts.flat[i]], y), (below[ends.flat[i]], y - 1)] for i in order]
    shades = [str(round(1 - 0.95 * strength[i], 3)) for i in order]
    widths = [look.thin + (look.thick - look.thin) * strength[i] for i in order]
    axes.add_collection(LineCollection(lines, colors=shades, linewidths=widths, zorder=2))


def draw_panels(panels: list[DrawnNetwork], *, columns: int, look: Look) -> Figure:
    """Draw networks side by side, each below its polygon if h = 2, as many as a page holds.

    Args:
      panels: networks, the most important first; the first is the target, which sets the scale.
      columns: number of panels in a row.
      look: sizes.
    """
    target = panels[0]
    polygon = target.weight.shape[1] == 2
    margin = 0.6 if look is LARGE else 0.0
    column = (style.WIDTH - margin) / columns
    network = column * (0.36 if look is LARGE else 0.3) * (3 + len(target.hidden))
    heights = [0.92 * column, min(network, style.PAGE / 2)][not polygon :]
    most = columns * Grid.most_rows(heights, look)
    shown = panels[:most]
    grid = Grid(columns, -(-len(shown) // columns), heights=heights, look=look, margin=margin)
    if len(panels) > most:
        text = f"The first {most} of {len(panels)}; the component browser shows all."
        grid.figure.text(0.5, 0.01, text, fontsize=9, ha="center", va="bottom")
    for place, panel in enumerate(shown):
        axes = grid.axes(place)
        grid.title(place, panel)
        if polygon:
            draw_polygon(axes[0], panel.weight, target.weight)
        draw_network(axes[-1], panel, target, look)
        if look is LARGE and place % columns == 0:
            name_layers(axes[-1], len(panel.hidden))
    return grid.figure
