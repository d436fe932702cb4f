"""The figures on the page of a decomposition, with their captions."""

from typing import Any

from apd_jax.evaluation import curves
from apd_jax.evaluation.model import ComponentModel
from apd_jax.evaluation.seen import Seen
from apd_jax.evaluation.summary import Summary
from apd_jax.plotting import decomposition_figures, style
from apd_jax.report import examples, parts
from apd_jax.sites import PyTree

CAPTIONS = {
    "activity": (
        "How often components are active",
        "Share of the examples on which each component is active, and below it the component's "
        "rank over all sites. A component that is always on (red) is not specific to any use.",
    ),
    "active_counts": (
        "What is active on an example",
        "Number of components that are active on an example, and their total rank; the red line is "
        "the mean. A few components of low rank explain the network; many components, or a rank "
        "near the network's, do not.",
    ),
    "error_curves": (
        "How many components are needed",
        "Distance of the output from the target's as more components are switched on; the dotted "
        "line marks the number that this decomposition uses. Next to it, the same against the rank "
        "of the active components, with two baselines that need no training: the singular "
        "directions and the columns of every matrix.",
    ),
    "attributions": (
        "Attributions",
        "Distribution of the attributions of all pairs of an example and a component. Two modes "
        "with a gap between them mean that it is clear which components an example uses.",
    ),
    "singular_values": (
        "Singular values",
        "One line for each component, and the target's in blue. A component of rank one has a "
        "single large value; a component whose line is low has almost nothing at that site.",
    ),
    "faithfulness": (
        "Do the components add up to the target?",
        "Share of the squared weights of each site that the sum of all components misses.",
    ),
    "top_examples": (
        "Which examples a component is most important for",
        "One row for each component, most active first, with the share of the examples on which it "
        "is active. Examples are ranked by its share of the squared attributions. The number below "
        "a picture is that of the example, in grey if the component is not active on it.",
    ),
}


def panels(
    decomposition: ComponentModel, x: PyTree, found: Seen, summary: Summary, labels: Any
) -> list[parts.Panel]:
    """Draw the figures.

    Args:
      decomposition: what was found.
      x: [N, ...] inputs.
      found: what the components do on them.
      summary: the summary of this.
      labels: [N, ...] classes or values, or None.
    """
    used = summary.active.active_components or 0.0
    lines = curves.error_curves(decomposition, x, found, summary, labels)
    drawn = {
        "activity": lambda: decomposition_figures.activity(summary),
        "active_counts": lambda: decomposition_figures.active_counts(found, summary),
        "error_curves": lambda: decomposition_figures.error_curves(
            lines, used, summary.quality_name
        ),
        "attributions": lambda: decomposition_figures.attributions(found),
        "singular_values": lambda: decomposition_figures.singular_values(
            decomposition.target, decomposition.components
        ),
        "faithfulness": lambda: decomposition_figures.faithfulness(summary),
    }
    captions = dict(CAPTIONS)
    images, why = examples.as_pictures(x)
    if images is not None and len(found.lead) == 1:
        drawn["top_examples"] = lambda: decomposition_figures.top_examples(found, summary, images)
        title, caption = CAPTIONS["top_examples"]
        captions["top_examples"] = title, f"{caption} {why}".rstrip()
    return [
        parts.Panel(name, *captions[name], style.to_png(draw())) for name, draw in drawn.items()
    ]
