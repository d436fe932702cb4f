"""Parts of a page: template, styles and scripts, curves, figures, data blocks."""

import base64
import hashlib
import json
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import markupsafe

from apd_jax.report import curves as svg
from apd_jax.report import numbers

_TEMPLATES = pathlib.Path(__file__).parent / "templates"
_STYLES, _BROWSER_STYLES = ("report.css",), ("browser.css",)
_SCRIPTS = ("report.js",)
_BROWSER_SCRIPTS = ("browser_data.js", "browser_charts.js", "browser.js")
# A figure of 6 inches is 690 pixels wide on the page, whatever its resolution.
_PIXELS_PER_INCH = 115


class Panel(NamedTuple):
    """One figure of the report.

    Attributes:
      name: file stem, also the anchor of the figure.
      title: a few words.
      caption: how to read it.
      png: bytes of a PNG file.
    """

    name: str
    title: str
    caption: str
    png: bytes


def render(template: str, **content: Any) -> str:
    """Fill in a template; everything from the arguments is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = numbers.number
    return environment.get_template(template).render(**content)


def curves(
    metrics: Sequence[Mapping[str, Any]],
    target_metrics: Sequence[Mapping[str, Any]],
    titles: Mapping[str, tuple[str, str]],
    seeds: Sequence[str],
) -> dict[str, Any]:
    """Values for the template `curves.html.j2`: charts of the decomposition and of its target."""
    target = [
        {"step": record["step"], "target/loss": record["loss"]}
        for record in target_metrics
        if "loss" in record
    ]
    charts = svg.charts(metrics, order=titles) + svg.charts(target)
    readouts = [
        {
            "steps": chart.steps,
            "x": chart.x,
            "y": chart.y,
            "values": [
                [None if v is None else float(f"{v:.4g}") for v in line] for line in chart.values
            ],
        }
        for chart in charts
    ]
    return {
        "charts": charts,
        "curve_titles": titles,
        "chart_size": (svg.WIDTH, svg.HEIGHT),
        "chart_data": json_block({"seeds": list(seeds), "charts": readouts}),
    }


def assets(with_browser: bool) -> dict[str, Any]:
    """Style and script of the page, and the script's hash for the content security policy."""
    scripts = _SCRIPTS + _BROWSER_SCRIPTS if with_browser else _SCRIPTS
    styles = _STYLES + _BROWSER_STYLES if with_browser else _STYLES
    style, script = (
        "".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in names)
        for names in (styles, scripts)
    )
    return {
        "style": markupsafe.Markup(style),
        "script": markupsafe.Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def json_block(data: Any) -> markupsafe.Markup:
    """Write JSON for a data block, without characters that could end the block or start markup."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return markupsafe.Markup(text)


def figure(panel: Panel) -> dict[str, Any]:
    """Values of a panel for the template, with its size, which keeps the layout from shifting."""
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
