"""Reading of metrics.jsonl: the intact rows, and which are missing."""

import json
import pathlib
from typing import Any


def read(
    path: pathlib.Path, *, steps: int, chunk_steps: int, every: int | None = None
) -> tuple[list[dict[str, Any]], str]:
    """Read the intact rows: incomplete curves are better than none.

    Args:
      path: a metrics.jsonl, which may be missing, truncated or damaged.
      steps, chunk_steps: settings of the loop that wrote it, one row per chunk.
      every: spacing of the work between its steps (`loop.Between`), where a chunk ends too; None
        or 0 where there was none.

    Returns:
      The intact rows in order of their steps, and a sentence that says what is missing, or "".
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return [], f"{path} cannot be read ({error.strerror}): its curves are missing."
    rows = {row["step"]: row for row in map(_row, lines) if row and 0 < row["step"] <= steps}
    missing = _missing(set(rows), steps, chunk_steps, every or steps)
    text = f"{path} lacks {missing} of {len(rows) + missing} rows: its curves have gaps."
    return [rows[step] for step in sorted(rows)], text if missing else ""


def _missing(found: set[int], steps: int, chunk_steps: int, every: int) -> int:
    """How many chunks have no row, from row to row: where data failed, a chunk ended early."""
    done = missing = 0
    while done < steps:
        end = min(done + chunk_steps, (done // every + 1) * every, steps)
        first = next((step for step in range(done + 1, end + 1) if step in found), None)
        missing += first is None
        done = first or end
    return missing


def _row(line: str) -> dict[str, Any] | None:
    """The row of a line, or None where it is damaged."""
    try:
        row = json.loads(line)
        whole = all(map(_is_metric, row.values())) and type(row["step"]) is int
    except (ValueError, AttributeError, KeyError, RecursionError):
        return None
    return row if whole else None


def _is_metric(value: Any) -> bool:
    """Whether a value is a number or null, or a list of these."""
    items = value if isinstance(value, list) else [value]
    return all(item is None or isinstance(item, int | float) for item in items)
