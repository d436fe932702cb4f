"""Published numbers, and verdicts computed from ours."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Published(NamedTuple):
    """One number that the paper or SPD reports.

    Attributes:
      key: the entry of the summary that it is compared with.
      label: its name for a reader.
      paper: the paper's value, as printed or "≈ " as read off a figure; None where it gives none.
      spd: the same for SPD.
      definition: how it is measured.
    """

    key: str
    label: str
    paper: str | None
    spd: str | None
    definition: str


class Threshold(NamedTuple):
    """A condition on an entry of the summary: `value comparison threshold`."""

    key: str
    comparison: str
    threshold: float
    description: str


def summarise(seeds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean and standard deviation over seeds of every number, and the share of solved seeds."""
    summary = {}
    for key in seeds[0]:
        if key == "solved":
            continue
        values = np.array([seed[key] for seed in seeds], dtype=np.float64)
        summary[f"{key}_mean"] = float(values.mean())
        summary[f"{key}_std"] = float(values.std())
    summary["solve_rate"] = float(np.mean([bool(seed["solved"]) for seed in seeds]))
    return summary


def judge(thresholds: Sequence[Threshold], summary: Mapping[str, float]) -> list[dict[str, Any]]:
    """Compare the summary with the thresholds; NaN fails."""
    verdicts = []
    for key, comparison, threshold, description in thresholds:
        value = summary[key]
        passed = value >= threshold if comparison == ">=" else value <= threshold
        verdicts.append(
            {
                "name": key,
                "description": description,
                "value": value,
                "comparison": comparison,
                "threshold": threshold,
                "passed": bool(passed and math.isfinite(value)),
            }
        )
    return verdicts


def _scientific(value: float, digits: int) -> str:
    """As small numbers are printed in the paper: `1.125e-4`."""
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def compare(
    published: Sequence[Published], summary: Mapping[str, float], num_seeds: int
) -> list[dict[str, Any]]:
    """Our numbers beside the published ones, as text.

    Of several seeds the spread is shown, of one seed the standard error where it is known.
    """

    def ours(key: str) -> str:
        if f"{key}_mean" not in summary:
            return f"{summary[key]:.4g}"
        mean, spread = summary[f"{key}_mean"], summary[f"{key}_std"]
        write = _scientific if 0 < abs(mean) < 1e-2 else "{:.{}g}".format
        if num_seeds > 1:
            return f"{write(mean, 4)} ± {write(spread, 2)}"
        error = summary.get(f"{key}_standard_error_mean")
        return write(mean, 4) + (f" (standard error {write(error, 2)})" if error else "")

    return [{**row._asdict(), "ours": ours(row.key)} for row in published]
