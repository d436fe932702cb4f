"""Training curves as SVG geometry: metric records in, lines, ticks and readout values out.

Every metric has a chart, and every seed a line in it. Losses and the gradient norm get a
logarithmic axis; values that it can't show (zero, negative, NaN) leave gaps.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from apd_jax.runtime import metric_names

WIDTH, HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 24
_MOST_POINTS = 240
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LOGARITHMIC = (metric_names.LOSS, "gradient_norm", "target/loss")


class Line(NamedTuple):
    """One seed's curve: its index and an SVG path in the chart's coordinates."""

    seed: int
    path: str


class Chart(NamedTuple):
    """One metric over steps.

    Attributes:
      key: the metric's name in metrics.jsonl.
      log: whether the y axis is logarithmic.
      lines: one `Line` for each seed.
      x_ticks, y_ticks: (position, label) pairs.
      steps: [T] the steps that are drawn.
      x: [T] their positions.
      values: for each seed a list of T numbers, None for a gap.
      y: like values, the heights at which they are drawn.
      thinned: n, if only every n-th record is drawn.
    """

    key: str
    log: bool
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    steps: list[int]
    x: list[float]
    values: list[list[float | None]]
    y: list[list[float | None]]
    thinned: int


def charts(records: Sequence[Mapping[str, Any]], order: Iterable[str] = ()) -> list[Chart]:
    """Draw every metric of a metrics.jsonl.

    Args:
      records: one dict for each line, with "step" and, for every metric, a number or a list of one
        number for each seed.
      order: metric names that come first, in this order; the others follow as they appear.

    Returns:
      A chart for each metric that has a number in it, drawn from at most about 240 records; none
      of events that never happened.
    """
    by_step = {int(record["step"]): record for record in records}
    kept, thinned = _thin([by_step[step] for step in sorted(by_step)])
    found = dict.fromkeys(key for record in kept for key in record if key != "step")
    keys = [key for key in order if key in found] + [key for key in found if key not in set(order)]
    drawn = [
        _chart(key, kept, thinned)
        for key in keys
        if not key.startswith(metric_names.COUNT) or any(np.any(row.get(key, 0)) for row in kept)
    ]
    return [chart for chart in drawn if chart is not None]


def _thin(records: list[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], int]:
    """Keep every n-th record and the last, so that at most `_MOST_POINTS` are left (plus one)."""
    every = max(1, math.ceil(len(records) / _MOST_POINTS))
    kept = records[::every]
    if records and kept[-1] is not records[-1]:
        kept.append(records[-1])
    return kept, every


def _chart(key: str, records: list[Mapping[str, Any]], thinned: int) -> Chart | None:
    """Draw one metric, or None where no record has a number for it."""
    rows = [(int(record["step"]), record[key]) for record in records if record.get(key) is not None]
    seeds = max((len(row) if isinstance(row, list) else 1 for _, row in rows), default=0)
    values = [[_number(row, seed) for _, row in rows] for seed in range(seeds)]
    numbers = [v for line in values for v in line if v is not None]
    if not numbers:
        return None
    log = max(numbers) > 0 and key.startswith(_LOGARITHMIC)
    steps = [step for step, _ in rows]
    last = float(max(*steps, 1))
    axis = _log_axis if log else _linear_axis
    low, high, y_ticks = axis(min(v for v in numbers if v > 0 or not log), max(numbers))

    def across(step: float) -> float:
        return _place(step, 0.0, last, _LEFT, WIDTH - _RIGHT)

    def up(position: float) -> float:
        return _place(position, low, high, HEIGHT - _BOTTOM, _TOP)

    def height(value: float | None) -> float | None:
        if value is None or (log and value <= 0):
            return None
        return up(math.log10(value) if log else value)

    x = [across(step) for step in steps]
    y = [[height(value) for value in line] for line in values]
    return Chart(
        key=key,
        log=log,
        lines=[Line(seed, _path(x, line)) for seed, line in enumerate(y)],
        x_ticks=[(across(tick), _short(tick)) for tick in _round_ticks(0.0, last, 4)],
        y_ticks=[(up(tick), text) for tick, text in y_ticks],
        steps=steps,
        x=x,
        values=values,
        y=y,
        thinned=thinned,
    )


def _number(row: Any, seed: int) -> float | None:
    """One seed's value in a record, None for a gap."""
    if isinstance(row, list):
        row = row[seed] if seed < len(row) else None
    elif seed > 0:
        return None
    return float(row) if row is not None and math.isfinite(row) else None


def _place(value: float, low: float, high: float, at_low: float, at_high: float) -> float:
    """Map [low, high] linearly to [at_low, at_high]."""
    return round(at_low + (value - low) / (high - low) * (at_high - at_low), 1)


def _path(x: Sequence[float], y: Sequence[float | None]) -> str:
    """SVG path with a gap at every None; a single point becomes a dot."""
    parts, pen_down = [], False
    for px, py in zip(x, y, strict=True):
        if py is None:
            pen_down = False
            continue
        parts.append(f"L{px:g} {py:g}" if pen_down else f"M{px:g} {py:g}h0")
        pen_down = True
    return "".join(parts)


def _log_axis(low: float, high: float) -> tuple[float, float, list[tuple[float, str]]]:
    """Range in decades, and the coarsest of a few sets of ticks of which at least three fit."""
    low, high = math.log10(low), math.log10(high)
    if high - low < 0.1:
        low, high = low - 0.15, high + 0.15
    decades = range(math.floor(low), math.ceil(high) + 1)
    whole = [d for d in decades if low <= d <= high]
    if len(whole) >= 3:
        every = math.ceil(len(whole) / 6)
        powers = [d for d in whole if d % every == 0]
        return low, high, [(float(d), f"10{str(d).translate(_SUPERSCRIPTS)}") for d in powers]
    for steps in (
        (1, 3),
        (1, 2, 5),
        (1, 1.5, 2, 3, 5, 7),
        (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
    ):
        ticks = [math.log10(m) + d for d in decades for m in steps]
        ticks = [t for t in ticks if low <= t <= high]
        if len(ticks) >= 3:
            break
    return low, high, [(t, _short(10**t)) for t in ticks]


def _linear_axis(low: float, high: float) -> tuple[float, float, list[tuple[float, str]]]:
    """Range from zero, or below it, to a little above the highest value; about four ticks."""
    low = min(low, 0.0)
    high = high + 0.05 * (high - low) if high > low else low + 1.0
    return low, high, [(t, _short(t)) for t in _round_ticks(low, high, 4)]


def _round_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten in [low, high], about `count` of them."""
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    size = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
    return [i * size for i in range(first, last + 1)]


def _short(value: float) -> str:
    """A tick label: 20k, 0.05, 3e−5."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    if abs(value) >= 1e3:
        return f"{value / 1e3:.3g}k"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")
