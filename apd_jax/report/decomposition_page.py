"""The report of a decomposition of any network, as a single offline page.

Letters: N examples, T positions, C components.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import logging

from apd_jax import config_fields
from apd_jax.errors import UserError
from apd_jax.evaluation import baselines
from apd_jax.evaluation.evidence import Evidence
from apd_jax.evaluation.labels import label_array
from apd_jax.evaluation.model import ComponentModel
from apd_jax.evaluation.summarise import summarise_seen
from apd_jax.evaluation.summary import ALWAYS, Summary
from apd_jax.report import (
    component_table,
    decomposition_panels,
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

TRAINED_ON = (
    "The training may have seen these examples. For evidence on others, call "
    "found.report(path, x, evidence=found.evidence(held_out))."
)


def write(
    decomposition: ComponentModel,
    path: str | os.PathLike[str],
    x: PyTree,
    labels: Any = None,
    *,
    decode: examples.Decode | None = None,
    evidence: Evidence | None = None,
    trained_on: bool = False,
    gaps: Sequence[str] = (),
) -> list[parts.Panel]:
    """Write the page to a file, and return the figures on it; see `render`."""
    target = _page(path)
    text, panels = render(
        decomposition,
        x,
        labels,
        decode=decode,
        evidence=evidence,
        trained_on=trained_on,
        gaps=gaps,
    )
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
    decomposition: ComponentModel,
    x: PyTree,
    labels: Any,
    *,
    decode: examples.Decode | None = None,
    evidence: Evidence | None = None,
    trained_on: bool = False,
    gaps: Sequence[str] = (),
) -> tuple[str, list[parts.Panel]]:
    """Make the page and its figures.

    Args:
      decomposition: what was found.
      x: [N, ...] inputs.
      labels: see `Decomposition.summary`.
      decode: see `Decomposition.report`.
      evidence: see `Decomposition.report`.
      trained_on: whether the inputs may be among those of the training.
      gaps: sentences on missing parts of the curves.
    """
    if decode is not None:
        examples.check_decode(x, decode)
    if not isinstance(evidence, Evidence | None):
        raise UserError(
            "evidence must be what found.evidence(x) returns, or None, got a "
            f"{type(evidence).__name__}"
        )
    given = labels
    labels = label_array(decomposition.target, x, labels, decomposition.objective)
    found = decomposition.see(x, labels)
    summary = summarise_seen(decomposition, x, found, labels, tuple(baselines.BASELINES))
    panels = decomposition_panels.panels(decomposition, x, found, summary, labels)
    shown, notes = _evidence(decomposition, x, given, summary, evidence)
    if trained_on and shown and evidence is None:
        notes.append(TRAINED_ON)
    settings = config_fields.plain(config_fields.to_mapping(decomposition.settings))
    sentences = dict(config_fields.sentences(decomposition.settings))
    subject = words.Subject(_title(decomposition), "", {}, sentences)
    text = parts.render(
        "own.html.j2",
        title=subject.title,
        what=_what(decomposition),
        how=words.how(settings, inputs="examples"),
        objective=words.objective(settings),
        facts=_facts(decomposition, summary, shown),
        remarks=[f.text for f in summary.findings if f.kind == "trivial"],
        selects=decomposition.objective.selects,
        **_summary(summary),
        **evidence_section.content(
            shown, remarks=notes, examples=None if evidence else summary.num_examples
        ),
        **worst_examples.content(summary, x, decode),
        **_sites(decomposition, summary),
        **component_table.content(decomposition, x, found, summary, decode),
        **parts.assets(False),
        **parts.curves(decomposition.history, [], words.curves(subject), ["0"]),
        gaps=gaps,
        failed=[],
        panels=[parts.figure(panel) for panel in panels],
        command="",
        versions=versions(),
        config=words.config_rows(settings, sentences),
    )
    return text, [*panels, *(shown.panels if shown else [])]


def _evidence(
    decomposition: ComponentModel,
    x: PyTree,
    labels: Any,
    summary: Summary,
    found: Evidence | None,
) -> tuple[evidence_section.Section | None, list[str]]:
    """The section on evidence, or why there is none: the rest of the page does not need it."""
    try:
        found = found or evidence_section.measure(decomposition, x, labels)
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
    tried = ", ".join(f"{pilot['topk']:.3g}" for pilot in decomposition.pilots)
    return [
        ("components", numbers.number(settings.num_components)),
        ("steps", steps),
        *(
            [("k", f"{settings.objective.topk:.3g}, found by short runs with {tried}")]
            if tried
            else []
        ),
        ("batch size", numbers.number(settings.batch_size)),
        ("examples in this report", numbers.number(summary.num_examples)),
        *(
            [("examples of the evidence", numbers.number(evidence.found.num_examples))]
            if evidence
            else []
        ),
        ("machine", machine()["device"]),
    ]


def _summary(summary: Summary) -> dict[str, Any]:
    notes = {
        summary.network.name: "with its own weights",
        summary.active.name: "those with the largest attributions",
        summary.everything.name: "their sum in place of the weights",
        summary.nothing.name: "zeros in place of the weights",
        **{
            name: f"{meaning}; as many as the active rank"
            for name, meaning in baselines.BASELINES.items()
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
