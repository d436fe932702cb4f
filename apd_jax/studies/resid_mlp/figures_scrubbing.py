"""Figures of scrubbing: outputs when components that should not matter are switched off.

Letters: O outputs, S samples.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from apd_jax.plotting import style
from apd_jax.studies.resid_mlp.scrubbing import ScrubbingSamples
from apd_jax.studies.resid_mlp.single_features import AblationResponse

# Errors below this are not drawn in the histogram: mostly inputs without any active feature.
_SMALLEST_ERROR = 1e-7


@style.styled
def random_ablation(ablation: AblationResponse) -> Figure:
    """Draw the MLPs' output for a one-hot input while random halves of the components are off.

    Dots are means and bars standard deviations over random halves. With the feature's component on
    (scrubbed), the outputs should stay at the target's crosses whatever else is off. With it off
    (anti-scrubbed), the feature's own output should fall to 0.
    """
    figure = style.new_figure(4.2)
    axes = figure.subplots()
    places = np.arange(len(ablation.target))
    axes.axhline(0, color=style.FAINT, linewidth=0.6, zorder=0)
    rows = (
        ("scrubbed", "APD, its component always on (scrubbed)", -0.12),
        ("antiscrubbed", "APD, its component always off (anti-scrubbed)", 0.12),
    )
    for role, label, shift in rows:
        axes.errorbar(
            places + shift,
            getattr(ablation, f"{role}_mean"),
            yerr=getattr(ablation, f"{role}_std"),
            fmt="o",
            markersize=2.6,
            elinewidth=0.9,
            color=style.ROLE_COLORS[role],
            label=label,
        )
    axes.scatter(
        places,
        ablation.target,
        s=40,
        marker="x",
        linewidths=1.0,
        color=style.ROLE_COLORS["target"],
        label="Target model",
        zorder=1,
    )
    axes.set_xticks(sorted({0, ablation.feature, len(places) - 1}))
    axes.set_xlabel("output index")
    axes.set_ylabel(f"MLP output for $x_{{{ablation.feature}}} = 1$")
    axes.set_xlim(-1, len(places))
    axes.legend(loc="upper right" if ablation.feature < len(places) / 2 else "upper left")
    return figure


@style.styled
def scrubbing(samples: ScrubbingSamples, numbers: Mapping[str, float]) -> Figure:
    """Draw the distribution of errors against the target's output, with means.

    Scrubbed should lie near top-k and far left of anti-scrubbed, with the grey line (one neuron per
    feature) between them. Means (dashed) are over all samples. Samples without any active feature
    have error 0 and lie outside the axis.

    Args:
      samples: errors of S samples.
      numbers: "topk_mse", "scrubbed_mse", "antiscrubbed_mse", "monosemantic_mse".
    """
    figure = style.new_figure(4.2)
    axes = figure.subplots()
    rows = (
        ("topk", "APD, top-k"),
        ("scrubbed", "APD, scrubbed"),
        ("antiscrubbed", "APD, anti-scrubbed"),
    )
    largest = max(getattr(samples, role).max() for role, _ in rows)
    edges = np.geomspace(_SMALLEST_ERROR, max(1.2 * largest, 10 * _SMALLEST_ERROR), 60)
    for role, label in rows:
        mean, color = numbers[f"{role}_mse"], style.ROLE_COLORS[role]
        text = f"{label}: mean {style.scientific(mean)}"
        counts, _ = np.histogram(getattr(samples, role), edges)
        axes.stairs(counts, edges, color=color, linewidth=1.8, label=text)
        axes.axvline(mean, color=color, linestyle="--", linewidth=1.2)
    baseline = numbers["monosemantic_mse"]
    axes.axvline(
        baseline,
        color=style.ROLE_COLORS["baseline"],
        linewidth=1.6,
        label=f"Monosemantic baseline: mean {style.scientific(baseline)}",
    )
    axes.set_xscale("log")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("MSE to the target's output, per sample")
    axes.set_ylabel("samples")
    axes.legend(loc="upper left")
    return figure
