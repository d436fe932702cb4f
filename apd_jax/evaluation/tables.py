"""Tables of a decomposition and of its summary, for terminals and notebooks."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from apd_jax.components import num_components
from apd_jax.evaluation import ranks
from apd_jax.evaluation.model import ComponentModel
from apd_jax.runtime import metric_names

if TYPE_CHECKING:
    from apd_jax.evaluation.summary import Summary

Rows = Sequence[Sequence[str]]


def number(value: float | None) -> str:
    """Three significant digits; a dash for None."""
    return "–" if value is None else f"{value:.3g}"


def text(head: Sequence[str], rows: Rows) -> str:
    """Write a table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in (head, *rows))
    ]
    return "\n".join(line.rstrip() for line in lines)


def as_html(title: str, head: Sequence[str], rows: Rows, below: Sequence[str] = ()) -> str:
    """Write a table as HTML, with a title above it and sentences below it."""

    def line(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    notes = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in below)
    return (
        f"<p><b>{html.escape(title)}</b></p><table><thead>{line(head, 'th')}</thead>"
        f"<tbody>{body}</tbody></table>{notes}"
    )


def _listed(components: Sequence[int]) -> str:
    shown = ", ".join(map(str, components[:10])) + (", ..." if len(components) > 10 else "")
    return f"{len(components)} ({shown})" if components else "none"


def _summary_table(summary: "Summary") -> tuple[list[str], list[list[str]]]:
    head = ["switched on", "components", "rank", "output error"]
    rows = [
        [row.name, number(row.active_components), number(row.active_rank), number(row.error)]
        for row in summary.rows
    ]
    if summary.quality_name:
        head.append(summary.quality_name)
        for cells, row in zip(rows, summary.rows, strict=True):
            cells.append(number(row.quality))
    if summary.network.cross_entropy is not None:
        head.append("cross entropy")
        for cells, row in zip(rows, summary.rows, strict=True):
            cells.append(number(row.cross_entropy))
    return head, rows


def _summary_notes(summary: "Summary") -> list[str]:
    notes = [
        f"Components and ranks are means over {summary.num_examples} examples.",
        f"Always on: {_listed(summary.always_on)}. Never on: {_listed(summary.dead)}.",
    ]
    shares = {s: v for s, v in summary.unfaithfulness.items() if s not in summary.empty_sites}
    if shares:
        site, worst = max(shares.items(), key=lambda item: item[1])
        notes.append(
            f"The components miss {worst:.2g} of the squared weights of {site}, the worst site."
        )
    if summary.cross_entropy_recovered is not None:
        notes.append(
            f"The active components recover {summary.cross_entropy_recovered:.1%} of the cross "
            "entropy that the network gains over no component."
        )
    if summary.errors is not None and summary.errors.worst:
        notes.append(summary.errors.sentence())
    if summary.agreement is not None:
        notes.append(summary.agreement.sentence())
    return [*notes, *summary.remarks]


def summary_text(summary: "Summary") -> str:
    """A summary for the terminal."""
    return "\n".join([text(*_summary_table(summary)), *_summary_notes(summary)])


def summary_html(summary: "Summary") -> str:
    """A summary for a notebook."""
    return as_html("Summary", *_summary_table(summary), _summary_notes(summary))


def decomposition_title(decomposition: ComponentModel) -> str:
    """A decomposition in one line."""
    settings, components = decomposition.settings, decomposition.components
    count = num_components(components)
    plural = "" if len(components) == 1 else "s"
    line = f"{count} components at {len(components)} site{plural}"
    if decomposition.history:
        last = decomposition.history[-1]
        line += f", {last['step']:.0f} of {settings.steps} steps"
        line += f", loss {number(metric_names.losses(last).get('total'))}"
    return line


def decomposition_table(decomposition: ComponentModel) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a decomposition's table, with one row for each site."""
    missing = ranks.unfaithfulness(decomposition.target, decomposition.components)
    empty = ranks.empty_sites(decomposition.target)
    rows = []
    for name, site in decomposition.target.sites.items():
        factors = decomposition.components[name]
        shape = " x ".join(map(str, site.shape))
        share = "all zero" if name in empty else number(missing[name])
        rows.append([name, shape, str(factors.reads.shape[-2]), share])
    return ["site", "matrix", "rank", "missing share"], rows
