"""Figures of a decomposed linear map: its components as matrices, and their singular values.

Letters: C components, d width.
"""

import numpy as np
from matplotlib.figure import Figure

from apd_jax.plotting import style
from apd_jax.studies.linear_map.measures import LinearArrays

_MOST_PANELS = 24


@style.styled
def matrices(arrays: LinearArrays) -> Figure:
    """Draw the target, the sum of the components and every component as a matrix of colours."""
    panels = [("target", arrays.target), ("sum", arrays.components.sum(axis=0))]
    for c in arrays.order[: _MOST_PANELS - 2]:
        rank = arrays.effective_ranks[c]
        panels.append((f"component {c}: rank {rank:.1f}", arrays.components[c]))
    columns = min(len(panels), 6)
    rows = -(-len(panels) // columns)
    figure = style.new_figure(1.85 * rows + 0.1)
    grid = figure.subplots(rows, columns, squeeze=False)
    largest = np.abs(arrays.target).max()
    for axes in grid.ravel():
        axes.set_visible(False)
    for axes, (title, matrix) in zip(grid.ravel(), panels, strict=False):
        axes.set_visible(True)
        image = axes.imshow(
            matrix, cmap=style.SIGNED, vmin=-largest, vmax=largest, interpolation="nearest"
        )
        axes.set_title(title, fontsize=8.5)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(True)
            spine.set_color(style.FAINT)
    bar = figure.colorbar(image, ax=grid, pad=0.01, aspect=30, shrink=0.8)
    bar.set_label("weight")
    bar.outline.set_visible(False)
    return figure


@style.styled
def spectra(arrays: LinearArrays) -> Figure:
    """Draw the singular values of every component, and of the target."""
    figure = style.new_figure(3.4, width=7.0)
    axes = figure.subplots()
    places = np.arange(1, arrays.singular_values.shape[1] + 1)
    for index, values in enumerate(arrays.singular_values):
        label = "components" if index == 0 else None
        axes.plot(places, values, "o-", color=style.ORANGE, alpha=0.6, markersize=4, label=label)
    target = np.linalg.svd(arrays.target, compute_uv=False)
    axes.plot(places, target, "s--", color=style.BLUE, markersize=4, label="target")
    axes.set(xlabel="index", ylabel="singular value", ylim=(-0.03, None), xticks=places)
    axes.legend()
    return figure


FIGURES = {
    "matrices": lambda numbers, arrays: matrices(arrays),
    "spectra": lambda numbers, arrays: spectra(arrays),
}
