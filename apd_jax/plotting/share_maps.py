"""Maps of the shares that components have of features or functions."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apd_jax.plotting import style


def draw(figure: Figure, axes: Axes, table: np.ndarray, label: str) -> None:
    """Draw shares [rows, components] as colours from −1 to 1, few of them with their numbers.

    Args:
      figure: gets a colour bar.
      axes: where the map is drawn.
      table: the shares.
      label: label of the colour bar.
    """
    image = axes.imshow(
        table, cmap=style.SIGNED, vmin=-1, vmax=1, aspect="auto", interpolation="nearest"
    )
    if table.size <= 120:
        for (row, c), share in np.ndenumerate(table):
            color = "white" if abs(share) > 0.6 else "#555555"
            text = f"{share:.2f}".replace("-0.00", "0.00")
            axes.text(c, row, text, color=color, fontsize=8, ha="center", va="center")
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.set_label(label)
    bar.outline.set_visible(False)
    axes.tick_params(length=0)
