"""The report of a decomposition of any network, as a single offline page.

Letters: N examples, T positions, C components.
"""

import os
import pathlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import logging

from apd_jax import config_fields
from apd_jax.errors import UserError
from apd_jax.evaluation import baselines, curves
from apd_jax.evaluation.labels import label_array
from apd_jax.evaluation.model import ComponentModel
from apd_jax.evaluation.seen import Seen
from apd_jax.evaluation.summarise import summarise_seen
from apd_jax.evaluation.summary import ALWAYS, Summary
from apd_jax.plotting import decomposition_figures, style
from apd_jax.report import (
    component_table,
    evidence_section,
    examples,
    numbers,
    parts,
    words,
    worst_examples,
)
from apd_jax.runtime import paths
from apd_jax.runtime.versions import machine, versions
from apd_jax.runtime.workdir import atomic_write_text
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


def write(
    decomposition: ComponentModel,
    path: str | os.PathLike[str],
    x: PyTree,
    labels: Any = None,
    decode: examples.Decode | None = None,
) -> list[parts.Panel]:
    """Write the page to a file, and return the figures on it."""
    target = _page(path)
    text, panels = render(decomposition, x, labels, decode)
    atomic_write_text(target, text)
    logging.info("Wrote %s", target)
    return panels


def _page(path: Any) -> pathlib.Path:
    """The path of the page, in a directory that is there.

    Raises:
      UserError: no page can be written there, which is better said before it is made.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(
            "the path of the page must be a str or a pathlib.Path, such as 'report.html', got a "
            f"{type(path).__name__}"
        )
    page = paths.local(path)
    if os.path.isdir(page):
        raise UserError(f"{page} is a directory: give the path of the page, {page / 'report.html'}")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            probe = page.with_name(f".{page.name}.tmp")  # the name that it is first written to
            probe.touch()
            probe.unlink()
    except OSError as error:
        raise UserError(
            f"the page can't be written to {page} ({error.strerror}): choose another path"
        ) from error
    return page


def render(
    decomposition: ComponentModel, x: PyTree, labels: Any, decode: examples.Decode | None = None
) -> tuple[str, list[parts.Panel]]:
    """Make the page and its figures; see `Decomposition.report`."""
    if decode is not None:
        examples.check_decode(x, decode)
    given = labels
    labels = label_array(decomposition.target, x, labels, decomposition.objective)
    found = decomposition.see(x, labels)
    summary = summarise_seen(decomposition, x, found, labels, tuple(baselines.BASELINES))
    panels = _panels(decomposition, x, found, summary, labels)
    evidence, failures = _evidence(decomposition, x, given, summary)
    settings = config_fields.plain(config_fields.to_mapping(decomposition.settings))
    sentences = dict(config_fields.sentences(decomposition.settings))
    subject = words.Subject(_title(decomposition), "", {}, sentences)
    text = parts.render(
        "own.html.j2",
        title=subject.title,
        what=_what(decomposition),
        how=words.how(settings, inputs="examples"),
        objective=words.objective(settings),
        facts=_facts(decomposition, summary, evidence),
        remarks=[f.text for f in summary.findings if f.kind == "trivial"],
        selects=decomposition.objective.selects,
        **_summary(summary),
        **evidence_section.content(evidence, failures=failures, examples=summary.num_examples),
        **worst_examples.content(summary, x, decode),
        **_sites(decomposition, summary),
        **component_table.content(decomposition, x, found, summary, decode),
        **parts.assets(False),
        **parts.curves(decomposition.history, [], words.curves(subject), ["0"]),
        gaps=[],
        failed=[],
        panels=[parts.figure(panel) for panel in panels],
        command="",
        versions=versions(),
        config=words.config_rows(settings, sentences),
    )
    return text, [*panels, *(evidence.panels if evidence else [])]


def _evidence(
    decomposition: ComponentModel, x: PyTree, labels: Any, summary: Summary
) -> tuple[evidence_section.Section | None, list[str]]:
    """The section on evidence, or why there is none: the rest of the page does not need it."""
    try:
        found = evidence_section.few(decomposition, x, labels)
    except UserError as error:
        return None, [f"There is no evidence: {error}."]
    return evidence_section.section(found, summary.agreement), []


def _title(decomposition: ComponentModel) -> str:
    network = decomposition.target.apply_fn
    module = getattr(network, "module", None)
    if not isinstance(module, nn.Module):
        module = getattr(module, "value", None)  # a module that holds lists is wrapped
    if isinstance(module, nn.Module):
        return type(module).__name__
    return getattr(network, "__name__", type(network).__name__).strip("<>_")


def _what(decomposition: ComponentModel) -> str:
    target = decomposition.target
    size = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(target.params))
    covered = sum(int(np.prod(site.shape)) for site in target.sites.values())
    count = len(target.sites)
    plural = "matrix" if count == 1 else "matrices"
    return (
        f"The network has {size:,} parameters, of which {covered:,} are in the {count} {plural} "
        "that were decomposed."
    )


def _facts(
    decomposition: ComponentModel, summary: Summary, evidence: evidence_section.Section | None
) -> list[tuple[str, str]]:
    settings, history = decomposition.settings, decomposition.history
    done = history[-1]["step"] if history else settings.steps
    steps = numbers.number(settings.steps)
    if done != settings.steps:
        steps = f"{numbers.number(int(done))} of {steps}"
    return [
        ("components", numbers.number(settings.num_components)),
        ("steps", steps),
        *_search(decomposition),
        ("batch size", numbers.number(settings.batch_size)),
        ("examples in this report", numbers.number(summary.num_examples)),
        *(
            [("examples of the evidence", numbers.number(evidence.found.num_examples))]
            if evidence
            else []
        ),
        ("machine", machine()["device"]),
    ]


def _search(decomposition: ComponentModel) -> list[tuple[str, str]]:
    """How k was found; empty if it was given."""
    if not decomposition.pilots:
        return []
    tried = ", ".join(f"{pilot['topk']:.3g}" for pilot in decomposition.pilots)
    return [("k", f"{decomposition.settings.objective.topk:.3g}, found by short runs with {tried}")]


def _summary(summary: Summary) -> dict[str, Any]:
    notes = {
        summary.network.name: "with its own weights",
        summary.active.name: "those with the largest attributions",
        summary.everything.name: "their sum in place of the weights",
        summary.nothing.name: "zeros in place of the weights",
        **{
            name: f"{meaning}; as many as the active rank"
            for name, meaning in baselines.MEANINGS.items()
        },
    }
    ways = [vars(row) | {"note": notes.get(row.name, "")} for row in summary.rows]
    active = summary.active
    always, dead = len(summary.always_on), len(summary.dead)
    return {
        "ways": ways,
        "quality_name": summary.quality_name,
        "with_cross_entropy": summary.network.cross_entropy is not None,
        "notes": [f.text for f in summary.findings if f.kind != "trivial"],
        "summary": (
            f"On {summary.num_examples:,} examples, {active.active_components:.3g} of "
            f"{len(summary.ranks)} components are active on average. Their total rank is "
            f"{active.active_rank:.3g}; that of the decomposed matrices is {summary.network_rank}. "
            f"{always} components are always on (on more than {ALWAYS:.0%} of the examples), and "
            f"{dead} never."
        ),
    }


def _sites(decomposition: ComponentModel, summary: Summary) -> dict[str, Any]:
    rows = [
        {
            "name": name,
            "kinds": "; ".join(dict.fromkeys(site.kinds)),
            "shape": " × ".join(map(str, site.shape)),
            "rank": decomposition.components[name].reads.shape[-2],
            "missing": None if name in summary.empty_sites else summary.unfaithfulness[name],
        }
        for name, site in decomposition.target.sites.items()
    ]
    left = [(other.path, other.reason) for other in decomposition.target.sites.left]
    return {"site_rows": rows, "left": left}


def _panels(
    decomposition: ComponentModel, x: PyTree, found: Seen, summary: Summary, labels: Any
) -> list[parts.Panel]:
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
