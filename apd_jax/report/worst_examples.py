"""The examples of a report that the active components explain worst."""

from typing import Any

import jax
import numpy as np

from apd_jax.evaluation.summary import Summary
from apd_jax.evaluation.worst import FAR
from apd_jax.report import component_table, examples
from apd_jax.sites import PyTree


def content(summary: Summary, x: PyTree, decode: examples.Decode | None) -> dict[str, Any]:
    """What `own.html.j2` shows of them, for `parts.render`."""
    spread = summary.errors
    if spread is None or not spread.worst:
        return {"worst_rows": []}
    x = jax.tree.map(np.asarray, x)
    rows = [
        {
            "error": worst.error,
            "times": worst.times_median,
            **component_table.example(x, [worst.example, *worst.position], decode),
        }
        for worst in spread.worst
    ]
    words = (
        "The examples on which the output of the active components is farthest from the network's. "
        f"{spread.share_far:.2%} of the errors are above {FAR:g} times the median error, "
        f"{spread.median:.3g}. A mechanism that few examples use, and that has no component, shows "
        "here first."
    )
    return {"worst_rows": rows, "worst_words": words}
