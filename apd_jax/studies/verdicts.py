"""Published numbers, and verdicts on our own."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np


class Published(NamedTuple):
    """A number that the paper or SPD reports.

    Attributes:
      key: Entry of the summary to compare it with.
      label: Name of the number for a reader.
      paper: The paper's value as printed, or with "≈ " if read off a figure; None if not reported.
      spd: The same for SPD.
      definition: How the number is measured.
    """

    key: str
    label: str
    paper: str | None
    spd: str | None
    definition: str


class Threshold(NamedTuple):
    """A condition on an entry of the summary, or on a number of every seed.

    `value comparison threshold`, where the threshold is a number, or the key of another entry.
    """

    key: str
    comparison: Literal[">=", "<="]
    threshold: float | str
    description: str


def summarise(seeds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return mean and standard deviation over seeds of every number, and the solve rate."""
    summary = {}
    for key in seeds[0]:
        if key == "solved":
            continue
        values = np.array([seed[key] for seed in seeds], dtype=np.float64)
        summary[f"{key}_mean"] = float(values.mean())
        summary[f"{key}_std"] = float(values.std())
    summary["solve_rate"] = float(np.mean([bool(seed["solved"]) for seed in seeds]))
    return summary


def judge(
    thresholds: Sequence[Threshold],
    summary: Mapping[str, float],
    seeds: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Compare numbers with thresholds; NaN and what was not measured fail.

    A key of the summary, such as "mmcs_mean", stands for one number. A key of the seeds, such as
    "mmcs", stands for one number per seed: all must pass, and the verdict is that of the worst
    seed, which its entry "seed" names.

    Args:
      thresholds: the conditions.
      summary: numbers over all seeds, see `summarise`.
      seeds: numbers of every seed.
    """
    return [
        max((_verdict(threshold, numbers) for numbers in _of(threshold, summary, seeds)), key=_miss)
        for threshold in thresholds
    ]


def _of(
    threshold: Threshold, summary: Mapping[str, float], seeds: Sequence[Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]]:
    """The numbers that a threshold is about: of every seed, or of the summary."""
    return seeds if any(threshold.key in seed for seed in seeds) else [summary]


def _verdict(threshold: Threshold, numbers: Mapping[str, Any]) -> dict[str, Any]:
    key, comparison, limit, description = threshold
    value = numbers.get(key, math.nan)
    if isinstance(limit, str):
        limit = numbers.get(limit, math.nan)
    passed = value >= limit if comparison == ">=" else value <= limit
    found = {
        "name": key,
        "description": description,
        "value": value,
        "comparison": comparison,
        "threshold": limit,
        "passed": bool(passed and math.isfinite(value)),
    }
    return found | ({"seed": numbers["seed"]} if "seed" in numbers else {})


def _miss(verdict: Mapping[str, Any]) -> tuple[bool, float]:
    """Order verdicts: those that fail last, each by how far the value is beyond the threshold."""
    excess = verdict["value"] - verdict["threshold"]
    excess = -excess if verdict["comparison"] == ">=" else excess
    return not verdict["passed"], math.inf if math.isnan(excess) else excess


def _scientific(value: float, digits: int) -> str:
    """Format a small number as in the paper: `1.125e-4`."""
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def compare(
    published: Sequence[Published], summary: Mapping[str, float], num_seeds: int
) -> list[dict[str, Any]]:
    """Return our numbers next to the published ones, as text.

    With several seeds, the standard deviation is shown; with one seed, the standard error if known.
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
