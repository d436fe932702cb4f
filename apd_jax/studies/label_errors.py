"""Figure of the errors against the labels by number of active features, for any target."""

import numpy as np
from matplotlib.figure import Figure

from apd_jax.plotting import style
from apd_jax.studies.reconstruction import LabelErrors

_BARS = (
    ("target", "target", "Target model"),
    ("topk", "topk", "APD, active components only"),
    ("baseline", "baseline", "Monosemantic baseline"),
)


@style.styled
def label_errors(errors: LabelErrors) -> Figure:
    """Draw the MSE against the labels on the training distribution and for exactly n active.

    If the orange bars are as low as the blue ones, the active components do the target's task as
    well as the whole target. If both are below the grey ones, the target computes more features
    than it has neurons.
    """
    figure = style.new_figure(3.6)
    axes = figure.subplots()
    places = np.arange(len(errors.num_active))
    width = 0.8 / len(_BARS)
    for i, (field, role, label) in enumerate(_BARS):
        left = places + (i - 1) * width
        axes.bar(
            left, getattr(errors, field), width * 0.94, color=style.ROLE_COLORS[role], label=label
        )
    names = [f"exactly {n} active" if n else "training\ndistribution" for n in errors.num_active]
    axes.set_xticks(places, names)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("MSE against the labels")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    axes.grid(axis="y", color=style.FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", frameon=True, framealpha=1, edgecolor="none")
    return figure
