"""Figures of neuron contributions: the neurons of a feature, in the target and in a component.

Letters: C components, F features, N neurons of all layers.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apd_jax.plotting import style
from apd_jax.studies.resid_mlp.contributions import Contributions

_NAMED_ABOVE = 0.1
_BAND, _PER_BAND = 3.1, 20  # height of a band in inches, and its features
_MOST_BANDS = int((style.PAGE - 0.3) / _BAND)


@style.styled
def neuron_contributions(contributions: Contributions, *, num_features: int = 10) -> Figure:
    """Draw the neuron contributions of the first features, target above, best component below.

    Each dot is a neuron. Neurons with a contribution above 0.1 in the target are numbered in both
    rows. With more than one layer, the colour of a dot is its layer. The component of a feature
    should have the same neurons at the same heights as the target, and all other neurons at 0.

    Args:
      contributions: contributions of the target and of the components.
      num_features: number of features to draw.
    """
    count = min(num_features, contributions.target.shape[0])
    figure = style.new_figure(6.0)
    upper, lower = figure.subplots(2, 1, sharey=True)
    upper.set_ylim(_limits(contributions, count))
    _draw_pair(upper, lower, contributions, 0, count, size=7.5)
    upper.set_title("Target model")
    lower.set_title("Best component of each feature, alone")
    for axes in (upper, lower):
        axes.set_ylabel("neuron contribution")
    _name_layers(upper, contributions)
    return figure


@style.styled
def neuron_contributions_all(contributions: Contributions) -> Figure:
    """Draw the neuron contributions of all features, in bands of target above best component.

    Bands are read like `neuron_contributions`. A page has five bands; further features are left
    out.
    """
    count = min(contributions.target.shape[0], _MOST_BANDS * _PER_BAND)
    bands = -(-count // _PER_BAND)
    figure = style.new_figure(_BAND * bands + 0.3)
    if count < contributions.target.shape[0]:
        figure.suptitle(f"The first {count} of {contributions.target.shape[0]} features")
    axes = figure.subplots(2 * bands, 1, sharey=True, squeeze=False)[:, 0]
    axes[0].set_ylim(_limits(contributions, count))
    for band in range(bands):
        first = band * _PER_BAND
        upper, lower = axes[2 * band : 2 * band + 2]
        _draw_pair(upper, lower, contributions, first, min(first + _PER_BAND, count), size=5.5)
        for part, name in ((upper, "target"), (lower, "component alone")):
            part.set_ylabel(name, fontsize=7.5)
            part.set_xlim(-0.5, _PER_BAND - 0.5)
            part.tick_params(labelsize=7)
    _name_layers(axes[0], contributions)
    return figure


def _limits(contributions: Contributions, count: int) -> tuple[float, float]:
    """The range of the first features' contributions, with a margin."""
    shown = np.stack([contributions.best[:count], contributions.target[:count]])
    low, high = min(shown.min(), 0), max(shown.max(), _NAMED_ABOVE)
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def _draw_pair(upper, lower, contributions: Contributions, first: int, last: int, size: float):
    """Draw features `first..last-1`: target in the upper axes, best components in the lower."""
    ours, theirs = contributions.best, contributions.target
    features = np.arange(first, last)
    named = theirs > _NAMED_ABOVE
    for axes, values in ((upper, theirs), (lower, ours)):
        _draw_neurons(axes, values[first:last], named[first:last], contributions.layer, size)
    places = np.arange(len(features))
    upper.set_xticks(places, features)
    lower.set_xticks(places, contributions.best_component[first:last])
    upper.tick_params(axis="x", length=0)
    lower.tick_params(axis="x", length=0)
    upper.set_xlabel("input feature", fontsize=size + 1.5)
    lower.set_xlabel("component", fontsize=size + 1.5)


def _draw_neurons(axes: Axes, values, named, layer, size: float) -> None:
    """Draw a column of dots per feature, values [features, N]; number the `named` neurons."""
    count, neurons = values.shape
    colors = style.layer_colors(int(layer.max()) + 1)
    for place in range(0, count, 2):
        axes.axvspan(place - 0.5, place + 0.5, color=style.PALE, zorder=0, linewidth=0)
    axes.axhline(0, color=style.FAINT, linewidth=0.8, zorder=1)
    places = np.repeat(np.arange(count), neurons).reshape(count, neurons)
    for i, color in enumerate(colors):
        inside = layer == i
        axes.scatter(
            places[:, inside],
            values[:, inside],
            s=2.2 * size,
            color=color,
            alpha=0.45,
            linewidths=0,
            zorder=3,
        )
    for place in range(count):
        _name_neurons(axes, place, values[place], np.flatnonzero(named[place]), layer, size)
    axes.set_xlim(-0.5, count - 0.5)


def _name_neurons(axes: Axes, place: int, values, neurons, layer, size: float) -> None:
    """Write neuron numbers next to their dots, on alternating sides, pushed apart where close."""
    colors = style.layer_colors(int(layer.max()) + 1)
    falling = neurons[np.argsort(-values[neurons], kind="stable")]
    for side, members in ((1, falling[::2]), (-1, falling[1::2])):
        heights = _spread(values[members], _text_height(axes, size))
        for neuron, height in zip(members, heights, strict=True):
            axes.annotate(
                str(neuron),
                (place, height),
                xytext=(side * 0.45 * size, 0),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
                va="center",
                fontsize=size,
                color=colors[layer[neuron]],
            )


def _text_height(axes: Axes, size: float) -> float:
    """The height of a line of text in the units of the y axis."""
    low, high = axes.get_ylim()
    figure = axes.get_figure(root=True)
    assert figure is not None
    inches = figure.get_size_inches()[1] / len(figure.axes) * 0.72
    return (high - low) * size * 1.05 / 72 / inches


def _spread(values: np.ndarray, gap: float) -> np.ndarray:
    """Move falling values as little as needed for neighbours to be `gap` apart.

    Values that are too close form a group around their mean; groups that come to overlap are
    joined.
    """
    groups: list[tuple[float, int]] = []
    for value in values:
        centre, count = float(value), 1
        while groups:
            above, members = groups[-1]
            if above - (members + count) * gap / 2 >= centre:
                break
            groups.pop()
            centre = (above * members + centre * count) / (members + count)
            count += members
        groups.append((centre, count))
    return np.concatenate(
        [centre + gap * ((count - 1) / 2 - np.arange(count)) for centre, count in groups]
        or [np.zeros(0)]
    )


def _name_layers(axes: Axes, contributions: Contributions) -> None:
    """Add a legend of the layers' colours if there is more than one layer."""
    colors = style.layer_colors(int(contributions.layer.max()) + 1)
    if len(colors) == 1:
        return
    for i, color in enumerate(colors):
        axes.scatter([], [], s=18, color=color, label=f"layer {i}", linewidths=0)
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 0.99),
        ncols=len(colors),
        borderaxespad=0.1,
        handletextpad=0.1,
    )
