"""The rows of a metrics.jsonl that are whole, and what is missing among them."""

import json
import pathlib
from typing import Any


def read(path: pathlib.Path, *, steps: int, chunk_steps: int) -> tuple[list[dict[str, Any]], str]:
    """Read what is there: curves are worth showing in part, and no reason to show nothing.

    Args:
      path: a metrics.jsonl, which may be missing, cut short or damaged.
      steps, chunk_steps: of the loop that wrote it, a row a chunk.

    Returns:
      The whole rows by step, and a sentence on what is missing, empty where nothing is.
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
    """The row that a line holds, or None where it is not a whole one."""
    try:
        row = json.loads(line)
        whole = all(map(_is_metric, row.values())) and isinstance(row["step"], int)
    except (ValueError, AttributeError, KeyError, RecursionError):
        return None
    return row if whole else None


def _is_metric(value: Any) -> bool:
    """Whether a value is a number or null, or a list of such."""
    items = value if isinstance(value, list) else [value]
    return all(item is None or isinstance(item, int | float) for item in items)
