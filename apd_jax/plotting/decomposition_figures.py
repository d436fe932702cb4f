"""Figures of a decomposition of any network.

Letters: N examples, R rows (examples, or positions of them), C components, q singular values.
"""

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from apd_jax.components import Components
from apd_jax.evaluation import ranking, ranks
from apd_jax.evaluation.curves import Curve
from apd_jax.evaluation.model import ComponentModel
from apd_jax.evaluation.seen import Seen
from apd_jax.evaluation.summary import ALWAYS, Summary
from apd_jax.plotting import style
from apd_jax.sites import Target

_MAX_ENTRIES = 1 << 18  # entries of a matrix that is drawn whole
_MAX_SITES = 6
_LOWEST = 1e-5  # smaller errors, in units of the largest, are drawn at this share
_COLORS = {"components": style.ORANGE, "svd": style.BLUE, "neurons": style.GREEN}


@style.styled
def activity(summary: Summary) -> Figure:
    """Draw the share of the rows on which every component is active, and the component's rank."""
    order = np.argsort(-summary.active_share, kind="stable")
    places = np.arange(len(order))
    figure = style.new_figure(3.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    colors = [
        style.VERMILION if summary.active_share[c] > ALWAYS else style.BLUE for c in order.tolist()
    ]
    upper.bar(places, summary.active_share[order], color=colors, width=0.85)
    upper.axhline(ALWAYS, color=style.GREY, linewidth=0.8, linestyle=":")
    upper.set_ylim(0, 1.02)
    upper.set_ylabel("share of examples")
    lower.bar(places, summary.ranks[order], color=style.GREY, width=0.85)
    lower.set_ylabel("rank")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    lower.set_xlabel("component" if len(order) <= 60 else "components, by activity")
    if len(order) <= 60:
        lower.set_xticks(places, [str(c) for c in order], fontsize=6.5 if len(order) > 30 else 8)
    lower.set_xlim(-0.8, len(order) - 0.2)
    return figure


@style.styled
def singular_values(target: Target, components: Components) -> Figure:
    """Draw the singular values of every component and of the target, site by site."""
    own = ranks.singular_values(components)
    theirs = ranks.target_singular_values(target)
    names = _largest_sites(target)
    figure, grid = _grid(len(names))
    for axes, name in zip(grid, names, strict=True):
        values = np.sort(own[name], axis=1)[:, ::-1]
        places = np.arange(1, values.shape[1] + 1)
        # A site whose weights are all zero has no scale: that of the components takes its place.
        largest = theirs[name].max() or values.max() or 1.0
        floor = 1e-3 * largest
        axes.plot(places, np.maximum(values, floor).T, color=style.ORANGE, linewidth=0.7, alpha=0.6)
        if values.shape[1] == 1:
            axes.plot(places[:, None], np.maximum(values, floor).T, ".", color=style.ORANGE, ms=3)
        count = len(theirs[name])
        axes.plot(
            np.arange(1, count + 1), np.maximum(theirs[name], floor), ".-", color=style.BLUE, ms=3
        )
        axes.set_yscale("log")
        axes.set_ylim(floor, 2 * largest)
        axes.set_title(style.label(name, 30))
        axes.set_xlabel("number")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    grid[0].set_ylabel("singular value")
    grid[0].plot([], [], color=style.BLUE, label="target")
    grid[0].plot([], [], color=style.ORANGE, label="components")
    grid[0].legend()
    return figure


@style.styled
def attributions(seen: Seen) -> Figure:
    """Draw the histogram of attributions, with those of active components in another colour."""
    scores = np.asarray(seen.scores, np.float64)
    finite = np.isfinite(scores)
    positive = scores[finite & (scores > 0)]
    figure = style.new_figure(2.8)
    axes = figure.subplots()
    if positive.size:
        top = np.log10(positive.max())
        bottom = max(np.log10(np.quantile(positive, 0.001)), top - 8)
        bins = np.logspace(bottom, top + 1e-6, 60).tolist()
        clipped = np.maximum(scores, bins[0])
        groups = [clipped[finite & ~seen.mask], clipped[finite & seen.mask]]
        axes.hist(
            groups, bins, stacked=True, color=[style.FAINT, style.ORANGE], label=["off", "active"]
        )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend()
    axes.set_xlabel("attribution")
    axes.set_ylabel("pairs of example and component")
    return figure


@style.styled
def active_counts(seen: Seen, summary: Summary) -> Figure:
    """Draw the number of components that are active on an example, and their total rank."""
    figure = style.new_figure(2.6)
    left, right = figure.subplots(1, 2, sharey=True)
    counts, active = seen.mask.sum(axis=1), seen.mask @ summary.ranks
    for axes, values, name in (
        (left, counts, "active components"),
        (right, active, f"rank of the active components (of {summary.network_rank})"),
    ):
        values = np.asarray(values)
        step = max(1, int(np.ceil((values.max() - values.min() + 1) / 60)))
        bins = np.arange(values.min(), values.max() + 1 + step, step) - 0.5
        axes.hist(
            values,
            bins,
            color=style.BLUE,
            rwidth=0.9,
            weights=np.full(len(values), 1 / len(values)),
        )
        axes.axvline(values.mean(), color=style.VERMILION, linewidth=1)
        axes.set_xlabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    left.set_ylabel("share of examples")
    return figure


@style.styled
def faithfulness(summary: Summary) -> Figure:
    """Draw the share of the squared weights that the components miss, site by site."""
    names = [name for name in summary.unfaithfulness if name not in summary.empty_sites]
    if not names:
        figure = style.new_figure(1.0)
        figure.text(0.5, 0.5, "the weights of all sites are zero", ha="center", va="center")
        return figure
    shares = np.array([summary.unfaithfulness[name] for name in names])
    drawn = np.isfinite(shares)  # a share is infinite where weights exceed the range of floats
    values = np.maximum(np.where(drawn, shares, 1.0), 1e-12)
    labels = [
        style.label(name, 60, lines=2) + ("" if finite else "\n(not finite)")
        for name, finite in zip(names, drawn, strict=True)
    ]
    figure = style.new_figure(0.9 + 0.26 * max(len(names), 2))
    axes = figure.subplots()
    places = np.arange(len(names))[::-1]
    axes.hlines(places[drawn], values.min() / 3, values[drawn], color=style.FAINT)
    axes.plot(values[drawn], places[drawn], "o", color=style.BLUE, ms=5)
    axes.set_xscale("log")
    axes.set_xlim(values.min() / 3, max(1.0, values.max() * 2))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_yticks(places, labels)
    axes.set_xlabel("missing share of the squared weights")
    return figure


@style.styled
def error_curves(curves: dict[str, Curve], used: float, quality_name: str) -> Figure:
    """Draw the output error against k, and against the rank of the active components."""
    panels = 3 if quality_name else 2
    figure = style.new_figure(3.0)
    grid = figure.subplots(1, panels)
    own = curves["components"]
    lowest = _LOWEST * max(max(curve.error) for curve in curves.values())
    grid[0].plot(own.k, own.error, ".-", color=_COLORS["components"])
    grid[0].axvline(used, color=style.GREY, linewidth=0.8, linestyle=":")
    grid[0].set_xlabel("k, active components per example")
    grid[0].set_ylabel("output error")
    grid[1].set_ylabel("output error")
    for name, curve in curves.items():
        errors = np.maximum(curve.error, lowest)
        grid[1].plot(curve.active_rank, errors, ".-", color=_COLORS[name], label=name)
        if quality_name:
            grid[2].plot(curve.active_rank, curve.quality, ".-", color=_COLORS[name])
            grid[2].set_ylabel(quality_name)
    for axes in grid[1:]:
        axes.set_xlabel("rank of the active components")
        if any(rank > 0 for curve in curves.values() for rank in curve.active_rank):
            axes.set_xscale("log")
    for axes in grid[:2]:
        if lowest > 0:  # else every output is the target's, and all errors are zero
            axes.set_yscale("log")
    grid[0].set_xscale("log")
    grid[1].legend()
    return figure


@style.styled
def top_examples(seen: Seen, summary: Summary, images: np.ndarray) -> Figure:
    """Draw the examples that each component is most important for, as images.

    Args:
      seen: attributions and masks on the examples.
      summary: summary of the same examples.
      images: [N, h, w], or [N, h, w, 3 or 4] colours in [0, 1].
    """
    order = np.argsort(-summary.active_share, kind="stable")
    chosen = [c for c in order.tolist() if summary.active_share[c] > 0][:20]
    columns = 8
    figure = style.new_figure(0.62 * max(len(chosen), 1) + 0.2, width=8.0)
    grid = figure.subplots(max(len(chosen), 1), columns, squeeze=False)
    scale = np.abs(images).max().astype(float)
    lowest = 0.0 if images.min() >= 0 else -scale
    share = ranking.shares(seen.scores)
    aspect = "auto" if images.shape[1] == 1 else "equal"
    colors = "Greys" if lowest == 0 else "RdBu_r"
    look = {"cmap": colors, "vmin": lowest, "vmax": scale, "aspect": aspect}
    for row in grid.ravel():
        style.bare(row)
    for axes_row, component in zip(grid, chosen, strict=False):
        best = ranking.rows(share[:, component], columns)
        title = f"{component}\n{summary.active_share[component]:.0%}"
        axes_row[0].set_ylabel(title, rotation=0, ha="right", va="center")
        for axes, row in zip(axes_row, best, strict=False):
            (example,) = seen.places(row)
            axes.imshow(images[example], interpolation="nearest", **look)
            on = seen.mask[row, component]
            axes.set_xlabel(
                f"{example}", fontsize=6.5, labelpad=1, color=style.INK if on else style.GREY
            )
    return figure


@style.styled
def component(decomposition: ComponentModel, number: int) -> Figure:
    """Draw a component's matrices under those of the target, site by site."""
    names = _largest_sites(decomposition.target)
    figure = style.new_figure(4.2, width=max(4.0, min(10.0, 2.4 * len(names))))
    grid = figure.subplots(2, len(names), squeeze=False)
    weights, width = decomposition.target.weights, 90 // max(len(names), 4)
    squares = {n: float(f.squared_norms()[number]) for n, f in decomposition.components.items()}
    for column, name in enumerate(names):
        target = _flat(np.asarray(weights[name]))
        one = jax.tree.map(lambda leaf: leaf[number : number + 1], decomposition.components[name])
        own = _flat(np.asarray(one.matrices()[0])) if target.size <= _MAX_ENTRIES else None
        share = squares[name] / max(sum(squares.values()), 1e-300)
        grid[0, column].set_title(style.label(name, width, lines=5))
        _matrix(grid[0, column], target, np.abs(target).max())
        if own is None:
            style.bare(grid[1, column])
        else:
            _matrix(grid[1, column], own, np.abs(own).max())
        grid[1, column].set_title(f"{share:.0%} of its squared norm", fontsize=8)
    grid[0, 0].set_ylabel("target")
    grid[1, 0].set_ylabel(f"component {number}")
    return figure


def _matrix(axes: Axes, matrix: np.ndarray, scale: float) -> None:
    scale = scale or 1.0
    tall = matrix.T if matrix.shape[0] > 4 * matrix.shape[1] else matrix
    axes.imshow(
        tall, cmap="RdBu_r", vmin=-scale, vmax=scale, aspect="auto", interpolation="nearest"
    )
    axes.set_xticks([])
    axes.set_yticks([])


def _flat(matrix: np.ndarray) -> np.ndarray:
    """A matrix as it is, or the blocks of a stack stacked vertically."""
    return matrix.reshape(-1, matrix.shape[-1])


def _largest_sites(target: Target) -> list[str]:
    """Names of the few sites with the most weights, in the network's order."""
    sites = target.sites
    sizes = {name: np.prod(site.shape) for name, site in sites.items()}
    kept = sorted(sizes, key=sizes.__getitem__, reverse=True)[:_MAX_SITES]
    return [name for name in sites if name in kept]


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    """Make axes in rows of three."""
    rows, columns = -(-count // 3), min(count, 3)
    figure = style.new_figure(2.6 * rows, width=max(4.5, 3.4 * columns))
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, grid[:count]
