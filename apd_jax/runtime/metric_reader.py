"""Reading of metrics.jsonl: the intact rows, and which are missing."""

import json
import pathlib
from typing import Any


def read(path: pathlib.Path, *, steps: int, chunk_steps: int) -> tuple[list[dict[str, Any]], str]:
    """Read the intact rows: incomplete curves are better than none.

    Args:
      path: a metrics.jsonl, which may be missing, truncated or damaged.
      steps, chunk_steps: settings of the loop that wrote it, one row per chunk.

    Returns:
      The intact rows in order of their steps, and a sentence that says what is missing, or "".
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return [], f"{path} cannot be read ({error.strerror}): its curves are missing."
    expected = {*range(chunk_steps, steps, chunk_steps), steps}
    rows = {row["step"]: row for row in map(_row, lines) if row and row["step"] in expected}
    missing = len(expected) - len(rows)
    text = f"{path} lacks {missing} of {len(expected)} rows: its curves have gaps."
    return [rows[step] for step in sorted(rows)], text if missing else ""


def _row(line: str) -> dict[str, Any] | None:
    """The row of a line, or None where it is damaged."""
    try:
        row = json.loads(line)
        whole = all(map(_is_metric, row.values())) and isinstance(row["step"], int)
    except (ValueError, AttributeError, KeyError, RecursionError):
        return None
    return row if whole else None


def _is_metric(value: Any) -> bool:
    """Whether a value is a number or null, or a list of these."""
    items = value if isinstance(value, list) else [value]
    return all(item is None or isinstance(item, int | float) for item in items)
