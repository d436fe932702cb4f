"""Outputs of a run: results.json, figures, and the report."""

import json
import math
import time
from typing import Any

import jax
import numpy as np
from absl import logging

from apd_jax import config_fields, randomness
from apd_jax.decomposition.result import Decomposition
from apd_jax.evaluation.compare import SeedMatrix
from apd_jax.plotting import style
from apd_jax.report import browser, evidence_section, page, parts, words
from apd_jax.run import seed_evidence
from apd_jax.run.seed_evidence import SeedEvidence
from apd_jax.run.setup import Setup
from apd_jax.runtime import metric_reader
from apd_jax.runtime.versions import machine, versions
from apd_jax.runtime.workdir import Workdir, atomic_write_bytes, atomic_write_text
from apd_jax.studies.probes import probe
from apd_jax.studies.verdicts import compare, judge, summarise


def publish(
    workdir: Workdir,
    setup: Setup,
    decompositions: list[Decomposition],
    rows: list[dict],
    arrays: list[Any],
    *,
    seconds: dict[str, float],
    command: str,
) -> dict[str, Any]:
    """Write results.json, figures and report of a run.

    Args:
      workdir: directory of the run.
      setup: setup of the run.
      decompositions, rows, arrays: result, numbers and arrays for figures, one entry per seed.
      seconds: time spent on each part of the run.
      command: command line that reproduces the run.

    Returns:
      The content of results.json.
    """
    agreements = [found.agreement() for found in decompositions]
    rows = [row | _agreement(one) for row, one in zip(rows, agreements, strict=True)]
    unmeasured = SeedEvidence([None] * len(rows), [])
    _write_results(workdir, setup, decompositions, rows, seconds, unmeasured)  # whatever comes
    start = time.monotonic()
    measured = seed_evidence.measure(setup, decompositions)
    seconds = seconds | {"evidence": time.monotonic() - start}
    results = _write_results(workdir, setup, decompositions, rows, seconds, measured)
    shown = _shown_seed(rows)
    section, content = _evidence(setup, measured, shown, agreements[shown])
    panels = _draw(setup, rows, arrays)
    _write_figures(workdir, panels + (section.panels if section else []))
    browsed = _browse(setup, decompositions[shown], arrays[shown], rows[shown]["seed"])
    metrics, target_metrics, gaps = _read_metrics(workdir, setup)
    text = page.render_report(
        subject=_subject(setup),
        results=results,
        metrics=metrics,
        target_metrics=target_metrics,
        gaps=gaps,
        panels=panels,
        browser=browsed,
        evidence=content,
        contexts=setup.study.contexts(arrays[shown]),
        command=command,
    )
    atomic_write_text(workdir.report, text)
    return results


def _write_results(
    workdir: Workdir,
    setup: Setup,
    decompositions: list[Decomposition],
    rows: list[dict],
    seconds: dict[str, float],
    measured: SeedEvidence,
) -> dict[str, Any]:
    summary = summarise([{k: v for k, v in row.items() if k != "seed"} for row in rows])
    rows = [row | own for row, own in zip(rows, measured.numbers(), strict=True)]
    summary |= measured.summary()
    variant = setup.config.variant
    results = {
        "name": setup.config.name,
        "variant": variant,
        "config": setup.config.flags(),
        "versions": versions(),
        "machine": machine(),
        "seconds": seconds,
        "seeds": rows,
        "summary": summary,
        "verdicts": judge(setup.study.thresholds(variant), summary, rows),
        "comparison": compare(setup.study.published(variant), summary, len(rows)),
        "evidence_verdicts": measured.verdicts(setup.seeds.tolist()),
    }
    if setup.config.restarts > 1:
        results["restart_losses"] = [list(found.losses) for found in decompositions]
    text = json.dumps(_with_nulls(results), indent=2, allow_nan=False)
    atomic_write_text(workdir.results, text + "\n")
    return results


def _with_nulls(value: Any) -> Any:
    """JSON content with null for the numbers that are not finite, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _with_nulls(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _agreement(found: SeedMatrix | None) -> dict[str, float]:
    """How far the restarts of a seed agree, for results.json."""
    if found is None:
        return {}
    mmcs, matched = found.mean()
    return {"restart_mmcs": mmcs, "restart_matched": matched}


def _evidence(
    setup: Setup, measured: SeedEvidence, shown: int, restarts: SeedMatrix | None
) -> tuple[evidence_section.Section | None, dict[str, Any]]:
    """The section of one seed, and what the page shows of it and of all seeds."""
    there = [i for i, one in enumerate(measured.found) if one is not None]
    if not there:
        return None, evidence_section.content(None, failures=measured.failures)
    if shown not in there:
        shown, restarts = there[0], None
    found = measured.found[shown]
    assert found is not None
    section = evidence_section.section(found, restarts)
    several = len(setup.seeds) > 1
    control = evidence_section.CONTROL.format("--config.target.shuffled=true")
    return section, evidence_section.content(
        section,
        shown=str(setup.seeds[shown]) if several else "",
        all_seeds=[one for one in measured.found if one is not None] if several else (),
        failures=measured.failures,
        control=evidence_section.IS_CONTROL if setup.task.shuffled else control,
    )


def _subject(setup: Setup) -> words.Subject:
    untrained = " It was not trained in this run, so there is no curve of its loss."
    return words.Subject(
        title=words.control(setup.study.title(setup.config.variant), setup.config.flags()),
        description=setup.study.description(setup.task)
        + ("" if setup.training else untrained)
        + (f" {evidence_section.IS_CONTROL}" if setup.task.shuffled else ""),
        measures=setup.study.measures,
        sentences=dict(config_fields.sentences(setup.config)),
    )


def _shown_seed(rows: list[dict]) -> int:
    """The index of the seed that is shown in detail: the first solved one, or the first."""
    return next((i for i, row in enumerate(rows) if row["solved"]), 0)


def _draw(setup: Setup, rows: list[dict], arrays: list[Any]) -> list[parts.Panel]:
    """Draw the main figure of every seed, and all figures of one seed."""
    shown, several = _shown_seed(rows), len(rows) > 1
    panels = []
    for index, (row, measured) in enumerate(zip(rows, arrays, strict=True)):
        only = None if index == shown else setup.study.main_figure
        figures = setup.study.draw(row, measured, only=only)
        for name, figure in figures.items():
            caption = setup.study.captions[name]
            panels.append(
                parts.Panel(
                    name=f"{name}_seed_{row['seed']}" if several else name,
                    title=caption.title + (f", seed {row['seed']}" if several else ""),
                    caption=caption.text,
                    png=style.to_png(figure),
                )
            )
    return panels


def _browse(
    setup: Setup, decomposition: Decomposition, arrays: Any, seed: int
) -> dict[str, Any] | None:
    """The data of the component browser for one seed; None where the study has none."""
    target = decomposition.target
    inputs = setup.study.probes(setup.task)
    if inputs is None:
        return None
    probes = probe(
        decomposition,
        setup.task.inputs,
        inputs.x,
        key=randomness.stream(np.uint32(seed), "probes"),
    )
    return browser.browser_data(
        factors={
            site: (np.asarray(f.U), np.asarray(f.V)) for site, f in decomposition.components.items()
        },
        target_weights={site: np.asarray(weight) for site, weight in target.weights.items()},
        **probes._asdict(),
        represented=setup.study.represented(arrays),
        views=setup.study.views(target),
        seed=seed if len(setup.seeds) > 1 else None,
        inputs=inputs.words,
    )


def _write_figures(workdir: Workdir, panels: list[parts.Panel]) -> None:
    workdir.figures.mkdir(exist_ok=True)
    for panel in panels:
        atomic_write_bytes(workdir.figures / f"{panel.name}.png", panel.png)
    if jax.process_index() != 0:
        return
    names = {panel.name for panel in panels}
    for path in workdir.figures.glob("*.png"):
        if path.stem not in names and style.is_ours(path.read_bytes()):
            path.unlink()


def _read_metrics(workdir: Workdir, setup: Setup) -> tuple[list[dict], list[dict], list[str]]:
    """Rows of the decomposition and of the target's training, and messages on gaps."""
    chunk_steps, steps = setup.config.chunk_steps, setup.settings.steps
    every = setup.settings.refine.spacing(steps)
    rows, gap = metric_reader.read(
        workdir.metrics, steps=steps, chunk_steps=chunk_steps, every=every
    )
    target_rows: list[dict] = []
    target_gap = ""
    if setup.training:
        target_rows, target_gap = metric_reader.read(
            workdir.target / "metrics.jsonl", steps=setup.training.steps, chunk_steps=chunk_steps
        )
    gaps = [sentence for sentence in (gap, target_gap) if sentence]
    for sentence in gaps:
        logging.warning("%s", sentence)
    return rows, target_rows, gaps
