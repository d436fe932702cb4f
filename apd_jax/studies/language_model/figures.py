"""Figures of a decomposed language model."""

from matplotlib.figure import Figure

from apd_jax.evaluation.evidence.result import BASELINES
from apd_jax.plotting import style
from apd_jax.studies.language_model.measures import LanguageArrays

_COLORS = {
    "components": style.ORANGE,
    "svd": style.BLUE,
    "bundled": style.SKY,
    "neurons": style.GREEN,
}


@style.styled
def curves(arrays: LanguageArrays) -> Figure:
    """Draw cross entropy recovered and KL divergence over the number of active components."""
    figure = style.new_figure(3.6)
    recovered, divergence = figure.subplots(1, 2)
    for series, curve in arrays.curves.items():
        label = BASELINES.get(series, "components")
        options = {"color": _COLORS[series], "label": label, "markersize": 4}
        recovered.plot(curve.l0, curve.recovered, "o-", **options)
        divergence.plot(curve.l0, curve.kl, "o-", **options)
    for axes, name in ((recovered, "cross entropy recovered"), (divergence, "KL, nats")):
        axes.axvline(arrays.k, color=style.GREY, linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_xlabel("active components per position")
        axes.set_ylabel(name)
        axes.grid(color=style.FAINT, linewidth=0.5)
    recovered.set_ylim(top=1.02)
    divergence.set_ylim(bottom=0)
    handles = divergence.get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


FIGURES = {"curves": lambda numbers, arrays: curves(arrays)}
