"""Heat maps of measures over the fields of a sweep."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from apd_jax.plotting import style

_CELL = 0.62  # height of a row of cells in inches
_DECADES = 10.0  # largest over smallest value above which colours are logarithmic


@style.styled
def heat_maps(
    grid: Mapping[str, Sequence[Any]],
    values: Mapping[tuple[Any, ...], float | None],
    title: str,
    *,
    share: bool = False,
) -> Figure:
    """Draw one measure at every point of a grid.

    The last field is the horizontal axis, the one before it the vertical one; there is a map for
    every combination of the fields before these two.

    Args:
      grid: the values of every swept field.
      values: the measure at every point, by the values of the fields in order; None where unknown.
      title: what is measured.
      share: whether it is a share, drawn from 0 to 1; other measures are better when smaller.
    """
    names, axes_values = list(grid), list(grid.values())
    rows, columns = ([None] if len(names) < 2 else axes_values[-2]), axes_values[-1]
    combinations = list(itertools.product(*axes_values[:-2]))
    figure = style.new_figure(len(combinations) * (0.9 + _CELL * len(rows)) + 0.3)
    maps = figure.subplots(len(combinations), 1, squeeze=False)[:, 0]
    norm, colours = _colours([v for v in values.values() if v is not None], share)
    for axes, before in zip(maps, combinations, strict=True):
        keys = [
            [(*before, *([] if len(names) < 2 else [row]), column) for column in columns]
            for row in rows
        ]
        _draw(axes, [[values.get(key) for key in line] for line in keys], norm, colours, share)
        axes.set_xticks(range(len(columns)), [str(v) for v in columns])
        axes.set_yticks(range(len(rows)), ["" if v is None else str(v) for v in rows])
        axes.set_xlabel(names[-1])
        axes.set_ylabel("" if len(names) < 2 else names[-2])
        where = ", ".join(f"{n} = {v}" for n, v in zip(names, before, strict=False))
        axes.set_title(f"{title}{', ' if where else ''}{where}")
    return figure


def _colours(known: list[float], share: bool) -> tuple[Normalize, Any]:
    name = "viridis" if share else "viridis_r"
    colours = matplotlib.colormaps[name].with_extremes(bad=style.PALE)
    if share:
        return Normalize(0, 1), colours
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if 0 < low * _DECADES < high:
        return LogNorm(low, high), colours
    return Normalize(low, high if high > low else low + 1), colours


def _draw(
    axes: Axes, table: list[list[float | None]], norm: Normalize, colours: Any, share: bool
) -> None:
    numbers = np.array([[np.nan if v is None else v for v in line] for line in table], float)
    axes.imshow(np.ma.masked_invalid(numbers), norm=norm, cmap=colours, aspect="auto")
    for (row, column), value in np.ndenumerate(numbers):
        known = np.isfinite(value)
        text = "–" if not known else f"{value:.2g}" if share else style.scientific(value)
        dark = known and sum(colours(norm(value))[:3]) < 1.5
        axes.text(column, row, text, ha="center", va="center", color="white" if dark else style.INK)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)
