"""Tables for terminals and notebooks."""

import html
from collections.abc import Sequence

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
