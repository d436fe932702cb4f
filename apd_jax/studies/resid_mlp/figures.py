"""Figures of a residual MLP and its components, feature by feature.

Letters: F features, O outputs.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from apd_jax.plotting import style
from apd_jax.studies.label_errors import label_errors
from apd_jax.studies.resid_mlp.figures_contributions import (
    neuron_contributions,
    neuron_contributions_all,
)
from apd_jax.studies.resid_mlp.figures_scrubbing import random_ablation, scrubbing
from apd_jax.studies.resid_mlp.scrubbing import PerFeature
from apd_jax.studies.resid_mlp.single_features import FeatureSweeps


@style.styled
def target_responses(sweeps: FeatureSweeps, *, feature: int) -> Figure:
    """Draw what the target computes: one feature above, all features below.

    Left: every output for a one-hot input. Right: the feature's own output as its input varies
    from -1 to 1. The active feature's output should be at the label and the others near 0 (their
    spread is the noise of computing more features than there are neurons). The curves should
    follow the label.

    Args:
      sweeps: sweep of every input.
      feature: feature of the upper row.
    """
    figure = style.new_figure(7.0)
    axes = figure.subplots(2, 2, sharey=True)
    _draw_one_feature(axes[0, 0], axes[0, 1], sweeps, feature)
    _draw_all_features(axes[1, 0], axes[1, 1], sweeps)
    count = len(sweeps.target)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, count - 1), _gradient()), ax=axes[1, :], pad=0.01, aspect=25
    )
    bar.set_label("active input feature")
    bar.outline.set_visible(False)
    for left in axes[:, 0]:
        left.set_xlabel("output index")
        left.set_ylabel("output value")
        left.axhline(0, color=style.FAINT, linewidth=0.6, zorder=0)
    for right in axes[:, 1]:
        right.axhline(0, color=style.FAINT, linewidth=0.6, zorder=0)
        right.axvline(0, color=style.FAINT, linewidth=0.6, zorder=0)
        right.set_xticks([-1, -0.5, 0, 0.5, 1])
    return figure


def _gradient():
    """The colour map of features by index, without the bright end, invisible on white."""
    viridis = matplotlib.colormaps["viridis"]
    return matplotlib.colors.ListedColormap(viridis(np.linspace(0.0, 0.88, 256)))


def _draw_one_feature(left: Axes, right: Axes, sweeps: FeatureSweeps, feature: int) -> None:
    outputs, labels = sweeps.one_hot_outputs[feature], sweeps.one_hot_labels[feature]
    places = np.arange(len(outputs))
    label: Any = {"color": style.ROLE_COLORS["label"], "label": "label"}
    target: Any = {"color": style.ROLE_COLORS["target"], "label": "target model"}
    left.scatter(places, labels, s=16, marker="x", linewidths=0.8, **label)
    left.scatter(places, outputs, s=16, linewidths=0, **target)
    left.set_title(f"All outputs for $x_{{{feature}}} = 1$, other inputs 0")
    first_half = feature < len(places) / 2
    left.legend(
        loc="center right" if first_half else "center left",
        frameon=True,  # covers the marks below the legend
        edgecolor=style.FAINT,
    )
    right.plot(sweeps.inputs, sweeps.labels[feature], linestyle="--", **label)
    right.plot(sweeps.inputs, sweeps.target[feature], linewidth=1.8, **target)
    right.set_title(f"Output {feature} as its input varies")
    right.set_xlabel(f"input $x_{{{feature}}}$")
    right.legend(loc="upper left")


def _draw_all_features(left: Axes, right: Axes, sweeps: FeatureSweeps) -> None:
    count, outputs = sweeps.one_hot_outputs.shape
    colors = _gradient()(np.linspace(0, 1, count))
    rows, places = np.indices((count, outputs))
    own = rows == places
    # Points are drawn in random order, so that no feature hides all others.
    order = np.random.default_rng(0).permutation(np.flatnonzero(~own))
    left.scatter(
        places.flat[order],
        sweeps.one_hot_outputs.flat[order],
        s=3,
        color=colors[rows.flat[order]],
        alpha=0.5,
        linewidths=0,
        rasterized=True,
    )
    left.scatter(places[own], sweeps.one_hot_outputs[own], s=16, color=colors, linewidths=0)
    left.scatter(
        places[own],
        sweeps.one_hot_labels[own],
        s=12,
        marker="x",
        linewidths=0.7,
        color=style.ROLE_COLORS["label"],
    )
    left.set_title("The same for each input in turn")
    for curve, color in zip(sweeps.target, colors, strict=True):
        right.plot(sweeps.inputs, curve, color=color, linewidth=0.7, alpha=0.8)
    for curve in np.unique(sweeps.labels, axis=0):  # one curve unless features have coefficients
        right.plot(sweeps.inputs, curve, color=style.ROLE_COLORS["label"], linestyle="--", zorder=5)
    right.set_title("Each output as its input varies")
    right.set_xlabel("input $x_i$")


@style.styled
def feature_errors(per_feature: PerFeature) -> Figure:
    """Draw the MSE against the labels for every feature, APD behind the target.

    Orange above blue is what APD loses on that feature, blue above orange what it gains. In the
    upper panel one component is active, so that a feature that needs more stands out. In the lower
    panel batch top-k chooses the number.
    """
    figure = style.new_figure(5.6)
    upper, lower = figure.subplots(2, 1, sharex=True, sharey=True)
    places = np.arange(len(per_feature.order))
    rows = (
        (upper, per_feature.label_top1, "APD, one component per sample"),
        (lower, per_feature.label_topk, "APD, batch top-k"),
    )
    target = per_feature.label_target[per_feature.order]
    for axes, values, label in rows:
        axes.bar(
            places,
            values[per_feature.order],
            width=0.9,
            color=style.ROLE_COLORS["topk"],
            label=label,
        )
        axes.bar(places, target, width=0.9, color=style.ROLE_COLORS["target"], label="Target model")
        better = np.where(values[per_feature.order] < target, values[per_feature.order], np.nan)
        axes.bar(places, better, width=0.9, color=style.ROLE_COLORS["topk"])  # in front of it
        axes.set_ylabel("MSE against the labels")
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    step = 1 if len(places) <= 50 else 2
    lower.set_xticks(
        places[::step], per_feature.order[::step], rotation=90, fontsize=6 if step > 1 else 7
    )
    lower.tick_params(axis="x", length=0)
    upper.tick_params(axis="x", length=0)
    lower.set_xlabel("input feature, sorted by the target's error")
    lower.set_xlim(-1, len(places))
    return figure


@style.styled
def components_needed(per_feature: PerFeature, sweeps: FeatureSweeps) -> Figure:
    """Draw the average number of active components against the error of one component alone.

    Each mark is a feature. Features at the left with 1 component are held by a single component. If
    a feature's single component is inaccurate, batch top-k selects more, so the marks rise to the
    right.
    """
    figure = style.new_figure(4.2)
    axes = figure.subplots()
    held = sweeps.held
    rows = (
        (held, style.BLUE, "o", f"held by one component ({held.sum()})"),
        (~held, style.VERMILION, "^", f"not held by one component ({(~held).sum()})"),
    )
    for chosen, color, marker, label in rows:
        axes.scatter(
            sweeps.top1_mse[chosen],
            per_feature.components_active[chosen],
            s=34,
            color=color,
            marker=marker,
            alpha=0.75,
            linewidths=0,
            label=label,
        )
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    axes.grid(color=style.FAINT, linewidth=0.4)
    axes.set_axisbelow(True)
    axes.set_xlim(left=0)
    axes.set_xlabel("MSE to the target with one component per sample, input swept over [−1, 1]")
    axes.set_ylabel("active components (batch top-k), mean")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, handletextpad=0.2)
    return figure


@style.styled
def component_counts(numbers: Mapping[str, float]) -> Figure:
    """Draw how many components represent no, one, two or more features.

    A component represents a feature if its largest neuron contribution to it exceeds 0.04. A good
    decomposition has many monosemantic components, no duosemantic or polysemantic ones, and all
    features represented.

    Args:
      numbers: "dead", "monosemantic", "duosemantic", "polysemantic", "features_represented".
    """
    figure = style.new_figure(3.2)
    axes = figure.subplots()
    rows = (
        ("dead", "dead\n(no feature)", style.GREY),
        ("monosemantic", "monosemantic\n(one feature)", style.GREEN),
        ("duosemantic", "duosemantic\n(two)", style.ORANGE),
        ("polysemantic", "polysemantic\n(more)", style.VERMILION),
        ("features_represented", "features\nrepresented", style.BLUE),
    )
    # A gap separates the count of features from the counts of components.
    places = np.array([0, 1, 2, 3, 4.5])
    counts = [numbers[key] for key, _, _ in rows]
    bars = axes.bar(places, counts, width=0.7, color=[color for _, _, color in rows])
    axes.bar_label(bars, padding=2, fontsize=10)
    axes.axvline(3.75, color=style.FAINT, linewidth=0.8, linestyle=":")
    axes.set_xticks(places, [label for _, label, _ in rows])
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("count")
    axes.set_ylim(0, 1.12 * max(*counts, 1))
    return figure


FIGURES = {
    "target_responses": lambda numbers, arrays: target_responses(
        arrays.sweeps, feature=arrays.ablation.feature
    ),
    "neuron_contributions": lambda numbers, arrays: neuron_contributions(arrays.contributions),
    "random_ablation": lambda numbers, arrays: random_ablation(arrays.ablation),
    "scrubbing": lambda numbers, arrays: scrubbing(arrays.samples, numbers),
    "feature_errors": lambda numbers, arrays: feature_errors(arrays.per_feature),
    "components_needed": lambda numbers, arrays: components_needed(
        arrays.per_feature, arrays.sweeps
    ),
    "component_counts": lambda numbers, arrays: component_counts(numbers),
    "label_errors": lambda numbers, arrays: label_errors(arrays.label_errors),
    "neuron_contributions_all": lambda numbers, arrays: neuron_contributions_all(
        arrays.contributions
    ),
}
