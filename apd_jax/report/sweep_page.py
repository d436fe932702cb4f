"""The report of a sweep: a table of its runs and heat maps over the swept fields, in one page."""

import math
from collections.abc import Mapping
from typing import Any

from apd_jax.plotting import style
from apd_jax.plotting.heat_maps import heat_maps
from apd_jax.report import numbers, parts, words

# Error measures: the first that the runs have is drawn, the others are in the table.
_ERRORS = ("topk_mse_mean", "kl_mean", "faithfulness_mse_mean")
_SOLVED = "solve_rate"
_COEFFICIENT = "coefficients."


def render(
    title: str,
    results: Mapping[str, Any],
    measures: Mapping[str, tuple[str, str]],
    sentences: Mapping[str, str],
    command: str,
) -> str:
    """Write the report of a sweep as a single HTML page.

    Args:
      title: the decomposed network.
      results: content of sweep.json.
      measures: descriptions of the study's own numbers, `{key: (column title, meaning)}`.
      sentences: `{dotted name: sentence}` of the fields of the config.
      command: the command line that reproduces the sweep.
    """
    runs, grid = results["runs"], results["grid"]
    known = {**words.MEASURES, **measures}
    keys = _columns(runs, known)
    counts = {state: sum(run["state"] == state for run in runs) for state in _STATES}
    return parts.render(
        "sweep.html.j2",
        title=f"{title}: sweep",
        fields=[
            (_short(name), ", ".join(map(str, values)), sentences.get(name, ""))
            for name, values in grid.items()
        ],
        counted=", ".join(f"{n} {_STATES[state]}" for state, n in counts.items() if n),
        seeds=results["config"]["seeds"],
        columns=[
            (words.measure(key, known), known.get(key.removesuffix("_mean"), ("", ""))[1])
            for key in keys
        ],
        runs=[_row(run, grid, keys) for run in runs],
        panels=[parts.figure(panel) for panel in _panels(runs, grid, keys, known)],
        config=words.config_rows(results["config"], sentences),
        versions=results["versions"],
        command=command,
        **parts.assets(False),
    )


_STATES = {"done": "finished", "diverged": "diverged", "waiting": "not run yet"}


def _short(field: str) -> str:
    return field.removeprefix(_COEFFICIENT)


def _columns(runs: list[Mapping[str, Any]], known: Mapping[str, Any]) -> list[str]:
    """The solve rate, then the means of those measures that have a description, errors first."""
    summaries = [run["summary"] for run in runs if run["summary"]]
    there = [key for key in (summaries[0] if summaries else {}) if key.endswith("_mean")]
    described = [key for key in there if key.removesuffix("_mean") in known]
    errors = [key for key in _ERRORS if key in there]
    rest = [key for key in described if key not in errors and not key.startswith("restart")]
    return [_SOLVED, *errors, *rest]


def _row(run: Mapping[str, Any], grid: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    summary = run["summary"]
    return {
        "values": [numbers.number(run["values"][name]) for name in grid],
        "name": run["name"],
        "state": run["state"],
        "reason": run["reason"],
        "solved": summary.get(_SOLVED),
        "cells": [_cell(summary, key) for key in keys],
    }


def _cell(summary: Mapping[str, Any], key: str) -> tuple[str, str]:
    """A measure and its standard deviation over seeds, as text."""
    spread = summary.get(f"{key.removesuffix('_mean')}_std") if key != _SOLVED else None
    value = summary.get(key)
    shown = value is not None and spread not in (None, 0)
    return numbers.number(value), numbers.number(spread, 2) if shown else ""


def _panels(
    runs: list[Mapping[str, Any]],
    grid: Mapping[str, list[Any]],
    keys: list[str],
    known: Mapping[str, tuple[str, str]],
) -> list[parts.Panel]:
    error = next((key for key in keys if key in _ERRORS), None)
    drawn = [(_SOLVED, "share of seeds that solved it")]
    if error is not None:
        drawn.append((error, words.measure(error, known)))
    return [
        parts.Panel(
            name=key,
            title=label[0].upper() + label[1:],
            caption="Every cell is a run; a dash marks one that diverged or was not run yet.",
            png=style.to_png(
                heat_maps(
                    {_short(name): values for name, values in grid.items()},
                    {tuple(run["values"].values()): _finite(run["summary"], key) for run in runs},
                    label,
                    share=key == _SOLVED,
                )
            ),
        )
        for key, label in drawn
    ]


def _finite(summary: Mapping[str, Any], key: str) -> float | None:
    value = summary.get(key)
    return value if value is not None and math.isfinite(value) else None
