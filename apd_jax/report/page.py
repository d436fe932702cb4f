"""The report of a run: results, metrics, figures and browser data in, one offline HTML page out.

Nothing is read but the templates next to this file, nothing is written, and the page loads
nothing: a content security policy in it forbids every request and every script but its own.
"""

import base64
import hashlib
import json
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import markupsafe

from apd_jax.report import curves, numbers, words

_TEMPLATES = pathlib.Path(__file__).parent / "templates"
_REQUIRED = ("name", "config", "versions", "seconds", "seeds", "summary")
_STYLES, _BROWSER_STYLES = ("report.css",), ("browser.css",)
_SCRIPTS = ("report.js",)
_BROWSER_SCRIPTS = ("browser_data.js", "browser_charts.js", "browser.js")
# A figure of 6 inches is 690 pixels wide on the page, whatever its resolution.
_PIXELS_PER_INCH = 115
_COMPARISONS = {">=": "≥", "<=": "≤"}


class Panel(NamedTuple):
    """One figure of the report.

    Fields:
      name: file stem, also the anchor of the figure.
      title: a few words.
      caption: how to read it.
      png: bytes of a PNG file.
    """

    name: str
    title: str
    caption: str
    png: bytes


def render_report(
    *,
    subject: words.Subject,
    results: Mapping[str, Any],
    metrics: Sequence[dict[str, Any]],
    target_metrics: Sequence[dict[str, Any]],
    panels: Sequence[Panel],
    browser: Mapping[str, Any] | None,
    command: str,
    gaps: Sequence[str] = (),
) -> str:
    """Write the report of one run as a single HTML page.

    Args:
      subject: what the run is about, in words.
      results: content of results.json; "verdicts", "comparison", "variant" and "machine" may be
        missing.
      metrics: records of metrics.jsonl, each with "step" and numbers or per-seed lists.
      target_metrics: the same for the target's training; empty where it was not trained.
      panels: figures in reading order.
      browser: what `browser.browser_data` returned, or None for a report without component browser.
      command: the command line that reproduces the run.
      gaps: sentences on what is missing of the curves.

    Returns:
      The page. Everything in it that came from the arguments is escaped.

    Raises:
      ValueError: results lacks a key, a verdict has an unknown comparison, or a panel is not a PNG.
    """
    missing = [key for key in _REQUIRED if key not in results]
    if missing:
        raise ValueError(
            f"results lacks {missing}; expected the content of results.json with {list(_REQUIRED)}"
        )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = numbers.number
    titles, measures = words.curves(subject), {**words.MEASURES, **subject.measures}
    charts = _charts(metrics, target_metrics, titles)
    return environment.get_template("report.html.j2").render(
        **_words(subject, results),
        **_tables(results, measures, subject.sentences),
        **_assets(browser is not None),
        charts=charts,
        gaps=gaps,
        curve_titles=titles,
        chart_size=(curves.WIDTH, curves.HEIGHT),
        chart_data=_json(
            {
                "seeds": words.seed_names(results),
                "charts": [_readout(chart) for chart in charts],
            }
        ),
        panels=[_figure(panel) for panel in panels],
        browser=browser,
        browser_data=_json(browser),
        command=command,
    )


def _words(subject: words.Subject, results: Mapping[str, Any]) -> dict[str, Any]:
    """Title, sentences and facts."""
    return {
        "title": subject.title,
        "what": subject.description,
        "how": words.how(results["config"]),
        "objective": words.objective(results["config"]),
        "solved": words.solved(results),
        "facts": words.facts(results),
    }


def _tables(
    results: Mapping[str, Any],
    measures: Mapping[str, tuple[str, str]],
    sentences: Mapping[str, str],
) -> dict[str, Any]:
    """Config, versions, verdicts, comparison and seeds, as rows."""
    flat = words.flatten(results["config"])
    return {
        "config": [
            (key, json.dumps(value, default=str), sentences.get(key, "")) for key, value in flat
        ],
        "versions": results["versions"],
        "verdicts": _verdicts(results.get("verdicts") or [], measures),
        "comparison": results.get("comparison") or [],
        "seed_table": _seed_table(results, measures),
        "failed": [i for i, seed in enumerate(results["seeds"]) if seed.get("solved") is False],
    }


def _assets(with_browser: bool) -> dict[str, Any]:
    """Style and script of the page, and the script's hash for the content security policy."""
    scripts = _SCRIPTS + _BROWSER_SCRIPTS if with_browser else _SCRIPTS
    styles = _STYLES + _BROWSER_STYLES if with_browser else _STYLES
    style, script = ("".join(_asset(name) for name in names) for names in (styles, scripts))
    return {
        "style": markupsafe.Markup(style),
        "script": markupsafe.Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def _asset(name: str) -> str:
    """Text of a file next to the template."""
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _json(data: Any) -> markupsafe.Markup:
    """JSON for a data block, without characters that could end the block or start markup."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return markupsafe.Markup(text)


def _charts(metrics, target_metrics, titles) -> list[curves.Chart]:
    """Charts of the decomposition, then of the target's training loss."""
    target = [
        {"step": record["step"], "target/loss": record["loss"]}
        for record in target_metrics
        if "loss" in record
    ]
    return curves.charts(metrics, order=titles) + curves.charts(target)


def _readout(chart: curves.Chart) -> dict[str, Any]:
    """What the page needs to show a chart's values under the pointer; values keep 4 digits."""
    values = [[None if v is None else float(f"{v:.4g}") for v in line] for line in chart.values]
    return {"steps": chart.steps, "x": chart.x, "y": chart.y, "values": values}


def _verdicts(
    verdicts: Sequence[Mapping[str, Any]], measures: Mapping[str, tuple[str, str]]
) -> list[dict[str, Any]]:
    """Verdicts with value and threshold as text."""
    rows = []
    for verdict in verdicts:
        sign = _COMPARISONS.get(verdict["comparison"])
        if sign is None:
            raise ValueError(
                f"verdict {verdict['name']!r} has comparison {verdict['comparison']!r}, "
                f"expected one of {list(_COMPARISONS)}"
            )
        rows.append(
            {
                "measure": words.measure(verdict["name"], measures),
                "description": verdict["description"],
                "passed": bool(verdict["passed"]),
                "value": numbers.against(verdict["value"], verdict["threshold"]),
                "threshold": f"{sign} {numbers.threshold(verdict['threshold'])}",
            }
        )
    return rows


def _seed_table(
    results: Mapping[str, Any], measures: Mapping[str, tuple[str, str]]
) -> dict[str, Any]:
    """Columns, one row a seed, and the row of means and standard deviations.

    Standard errors are in the comparison with the paper; as columns they would crowd out the rest.
    """
    seeds, summary = results["seeds"], results["summary"]
    keys = [
        key
        for key in dict.fromkeys(key for seed in seeds for key in seed)
        if key not in ("solved", "seed") and not key.endswith("_standard_error")
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


def _figure(panel: Panel) -> dict[str, Any]:
    """A panel as the template wants it, with its size in pixels so that the page doesn't jump."""
    if panel.png[:8] != b"\x89PNG\r\n\x1a\n" or len(panel.png) < 24:
        raise ValueError(f"panel {panel.name!r} is not a PNG, it starts with {panel.png[:8]!r}")
    width, height = _page_size(panel.png)
    return {
        "name": panel.name,
        "title": panel.title,
        "caption": panel.caption,
        "source": "data:image/png;base64," + base64.b64encode(panel.png).decode("ascii"),
        "width": width,
        "height": height,
    }


def _page_size(png: bytes) -> tuple[int, int]:
    """Width and height on the page in CSS pixels; a PNG that states its resolution is scaled."""
    width, height = struct.unpack(">II", png[16:24])
    at = png.find(b"pHYs", 0, 4096)
    per_metre, unit = struct.unpack(">I4xB", png[at + 4 : at + 13]) if at > 0 else (0, 0)
    if unit != 1 or per_metre == 0:
        return width, height
    shrink = min(1.0, _PIXELS_PER_INCH / (per_metre * 0.0254))
    return round(width * shrink), round(height * shrink)
