"""The report of a run: results, metrics, figures and browser data in, one offline HTML page out.

Only the templates next to this file are read, and nothing is written. The page loads nothing: its
content security policy forbids every request, and every script except its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from apd_jax.report import evidence_section, numbers, parts, rounds, words

_COMPARISONS = {">=": "≥", "<=": "≤"}


def render_report(
    *,
    subject: words.Subject,
    results: Mapping[str, Any],
    metrics: Sequence[dict[str, Any]],
    target_metrics: Sequence[dict[str, Any]],
    panels: Sequence[parts.Panel],
    browser: Mapping[str, Any] | None,
    command: str,
    evidence: Mapping[str, Any],
    contexts: Mapping[str, Any] | None,
    gaps: Sequence[str],
) -> str:
    """Write the report of one run as a single HTML page.

    Args:
      subject: title, description and words of the run.
      results: content of results.json; "verdicts", "comparison", "variant" and "machine" may be
        missing.
      metrics: records of metrics.jsonl, each with "step" and numbers or per-seed lists.
      target_metrics: records of the target's training; empty if it was not trained.
      panels: figures in reading order.
      browser: result of `browser.browser_data`, or None for no component browser.
      command: the command line that reproduces the run.
      evidence: result of `evidence_section.content`.
      contexts: result of `contexts.content`, or None for no such section.
      gaps: sentences on missing parts of the curves.

    Returns:
      The page. Everything in it that came from the arguments is escaped.
    """
    titles, measures = words.curves(subject), {**words.MEASURES, **subject.measures}
    several = len(results["seeds"]) > 1
    return parts.render(
        "report.html.j2",
        title=subject.title,
        what=subject.description,
        how=words.how(results["config"]),
        objective=words.objective(results["config"]),
        solved=words.solved(results),
        facts=words.facts(results),
        config=words.config_rows(results["config"], subject.sentences),
        versions=results["versions"],
        verdicts=[
            {
                "measure": words.measure(verdict["name"], measures)
                + (f", worst seed: {verdict['seed']}" if several and "seed" in verdict else ""),
                "description": verdict["description"],
                "passed": bool(verdict["passed"]),
                "value": numbers.against(verdict["value"], verdict["threshold"]),
                "threshold": f"{_COMPARISONS[verdict['comparison']]} "
                f"{numbers.threshold(verdict['threshold'])}",
            }
            for verdict in results.get("verdicts") or []
        ],
        comparison=results.get("comparison") or [],
        seed_table=_seed_table(results, measures),
        failed=[i for i, seed in enumerate(results["seeds"]) if seed.get("solved") is False],
        **evidence,
        **(contexts or {"contexts": None}),
        **parts.assets(browser is not None),
        **parts.curves(metrics, target_metrics, titles, words.seed_names(results)),
        rounds=rounds.sentences(metrics),
        gaps=gaps,
        panels=[parts.figure(panel) for panel in panels],
        browser=browser,
        browser_data=parts.json_block(browser),
        command=command,
    )


def _seed_table(
    results: Mapping[str, Any], measures: Mapping[str, tuple[str, str]]
) -> dict[str, Any]:
    """Columns, one row for each seed, and a row of means and standard deviations.

    Standard errors stand in the comparison with the paper, and the evidence in its own section:
    here they would multiply the columns.
    """
    seeds, summary = results["seeds"], results["summary"]
    keys = [
        key
        for key in dict.fromkeys(key for seed in seeds for key in seed)
        if key not in ("solved", "seed")
        and not key.endswith("_standard_error")
        and not key.startswith(evidence_section.PREFIX)
    ]
    columns = [measures.get(key, (key.replace("_", " "), "")) for key in keys]
    rows = [
        {
            "seed": name,
            "solved": seed.get("solved"),
            "cells": [numbers.number(seed.get(key)) for key in keys],
        }
        for name, seed in zip(words.seed_names(results), seeds, strict=True)
    ]
    means = [
        (
            numbers.number(_float(summary, f"{key}_mean")),
            numbers.number(_float(summary, f"{key}_std"), 2),
        )
        for key in keys
    ]
    return {"columns": columns, "rows": rows, "means": means if len(seeds) > 1 else []}


def _float(summary: Mapping[str, Any], key: str) -> float | None:
    """A summary number as float, so that the mean of counts reads 4.875 and not 4,875."""
    value = summary.get(key)
    return None if value is None else float(value)
