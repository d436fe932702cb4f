"""The rounds of refinement in sentences for the report.

Letters: S seeds side by side.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Metric -> its noun in singular and plural.
_NOUNS = {
    "refine/merges": ("merge", "merges"),
    "refine/splits": ("split", "splits"),
    "refine/gathers": ("gather", "gathers"),
    "refine/cleans": ("clean", "cleans"),
    "refine/undone": ("round undone", "rounds undone"),
}


def sentences(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write a sentence such as "Step 1600: 2 merges, 1 split, in 2 of 4 seeds." for every round.

    Args:
      metrics: records of metrics.jsonl, whose counts [S] are totals over all rounds so far.
    """
    said = []
    before: dict[str, np.ndarray] = {}
    step = 0
    for record in metrics:
        counts = {name: np.atleast_1d(record[name]) for name in _NOUNS if name in record}
        new = {name: n - before.get(name, np.zeros_like(n)) for name, n in counts.items()}
        parts = [
            f"{int(n.sum())} {_NOUNS[name][int(n.sum()) != 1]}"
            for name, n in new.items()
            if n.sum()
        ]
        if parts:
            seeds = np.any(list(new.values()), axis=0)
            where = f", in {seeds.sum()} of {seeds.size} seeds" if seeds.size > 1 else ""
            said.append(f"Step {step}: {', '.join(parts)}{where}.")
        before, step = counts, record["step"]
    return said
