"""Markdown tables of the measurements: `python -m benchmarks.tables` writes them into docs."""

import argparse
import json
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.options import RESULTS
from benchmarks.process import ROOT
from benchmarks.work import least_seconds

PAGE = ROOT / "docs" / "performance.md"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Format a table whose first column is text and whose other columns are numbers."""
    header = list(header)
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *map(list, rows)])


def _time(seconds: float) -> str:
    """Format a time with three digits in ms, μs or s."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} µs"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def _step(config: dict[str, Any]) -> tuple[float, float]:
    """Return the median seconds per step, and half the interquartile range."""
    low, median, high = np.quantile(config["seconds_per_step"], (0.25, 0.5, 0.75))
    return float(median), float(high - low) / 2


def steps(results: dict[str, Any]) -> str:
    """Return a table of time per step, compile time and memory of every config."""
    rows = []
    for name, config in results["configs"].items():
        median, spread = _step(config)
        compile_time = f"{config['compile_seconds']:.1f} s"
        memory = _megabytes(config["peak_memory"])
        rows.append([f"`{name}`", _time(median), f"± {_time(spread)}", compile_time, memory])
    return _table(["config", "step", "spread", "compile", "peak memory"], rows)


def stages(results: dict[str, Any]) -> str:
    """Return a table of the time of every stage of every config, their sum, and the step."""
    configs = {name: c for name, c in results["configs"].items() if "stages" in c}
    names = list(dict.fromkeys(name for c in configs.values() for name in c["stages"]))
    rows = []
    for name in names:
        times = (c["stages"].get(name) for c in configs.values())
        rows.append([name, *(_time(time["seconds"]) if time else "" for time in times)])
    sums = [sum(stage["seconds"] for stage in c["stages"].values()) for c in configs.values()]
    rows.append(["sum of the stages", *map(_time, sums)])
    rows.append(["**the step, timed as a whole**", *(_time(_step(c)[0]) for c in configs.values())])
    return _table(["stage", *(f"`{name}`" for name in configs)], rows)


def floors(results: dict[str, Any]) -> str:
    """Return a table of the work of every stage, its floor on this machine, and its time."""
    rates = results["rates"]
    operations, size = rates["operations_per_second"], rates["bytes_per_second"]
    rows = []
    for name, config in results["configs"].items():
        total = 0.0
        for stage, measured in config.get("stages", {}).items():
            floor = least_seconds(measured["operations"], measured["bytes"], operations, size)
            total += floor
            rows.append([f"`{name}` {stage}", *_over_floor(measured, measured["seconds"], floor)])
        if total:
            whole = {
                field: sum(stage[field] for stage in config["stages"].values())
                for field in ("operations", "bytes")
            }
            rows.append([f"**`{name}` step**", *_over_floor(whole, _step(config)[0], total)])
    table = _table(["", "GFLOP", "MB", "floor", "measured", "measured / floor"], rows)
    return (
        f"Floor of this machine: matrix products {operations / 1e9:.0f} GFLOP/s, "
        f"memory {size / 1e9:.1f} GB/s.\n\n{table}"
    )


def _over_floor(work: dict[str, float], seconds: float, floor: float) -> list[str]:
    counted = [f"{work['operations'] / 1e9:.3g}", f"{work['bytes'] / 1e6:.3g}"]
    return [*counted, _time(floor), _time(seconds), f"{seconds / floor:.1f}"]


def routes(results: dict[str, Any]) -> str:
    """Return a table of the time of a stage on every route; empty if none was measured."""
    configs = {name: c["routes"] for name, c in results["configs"].items() if "routes" in c}
    rows = []
    if not configs:
        return ""
    for stage, measured in next(iter(configs.values())).items():
        for route in measured:
            times = [_time(c[stage][route]["seconds"]) for c in configs.values()]
            rows.append([f"{stage}, `{route}`", *times])
    return _table(["stage, route", *(f"`{name}`" for name in configs)], rows)


def against(results: dict[str, Any]) -> str:
    """Return a table of time and memory against other code, for every config of it."""
    rows = []
    for name, config in results["configs"].items():
        times, ratios = config["seconds_per_step"], config["ratios"]
        rows.append(
            [
                f"`{name}`",
                *(_time(times[side]) for side in ("ours", "theirs")),
                f"**{config['ratio']:.1f}x**",
                f"{min(ratios):.1f} – {max(ratios):.1f}",
                *(_memory(config, side) for side in ("ours", "theirs")),
                f"{config['memory_ratio']:.2f}x",
            ]
        )
    header = ["config", "step", "theirs", "faster", "rounds"]
    return _table([*header, "peak memory (libraries)", "theirs", "smaller"], rows)


def _memory(config: dict[str, Any], side: str) -> str:
    """Format peak memory, and the memory before a model was created."""
    libraries = _megabytes(config["libraries_memory"][side])
    return f"{_megabytes(config['peak_memory'][side])} ({libraries})"


def scaling(results: dict[str, Any]) -> str:
    """Return tables of time per step along every sweep, with the power of growth."""
    parts = []
    for sweep in results["sweeps"]:
        rows = []
        for index, point in enumerate(sweep["points"]):
            power = ""
            if index:
                last = sweep["points"][index - 1]
                growth = np.log(point["seconds"] / last["seconds"])
                power = f"{growth / np.log(point['value'] / last['value']):.2f}"
            row = [str(point["value"]), _time(point["seconds"]), power]
            row.append(_megabytes(point["peak_memory"]))
            if "compile_seconds" in point:
                row.append(_time(point["compile_seconds"]))
            rows.append(row)
        header = [sweep["letter"], "step", f"power of {sweep['letter']}", "peak memory", "compile"]
        header = header[: len(rows[0])]
        parts.append(f"{sweep['title']}:\n\n{_table(header, rows)}")
    return "\n\n".join(parts)


# Tables of the page: name, file, and the function that formats it.
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "steps": ("steps.json", steps),
    "stages": ("steps.json", stages),
    "floors": ("steps.json", floors),
    "routes": ("steps.json", routes),
    "reference": ("reference.json", against),
    "spd": ("spd.json", against),
    "scaling": ("scaling.json", scaling),
    "transformer": ("transformer.json", scaling),
}


def fill(page: str, results: pathlib.Path) -> str:
    """Insert tables between their marks, `<!-- table: steps -->` and `<!-- end -->`.

    Args:
      page: Text of the page; everything between marks is replaced.
      results: Directory of the JSON files. A table without its file is not changed.

    Raises:
      ValueError: A mark has an unknown name.
    """

    def replace(found: re.Match) -> str:
        if found[1] not in TABLES:
            raise ValueError(f"a table must be one of {sorted(TABLES)}, got {found[1]!r}")
        file, make = TABLES[found[1]]
        if not (results / file).exists():
            return found[0]
        table = make(json.loads((results / file).read_text()))
        return f"<!-- table: {found[1]} -->\n\n{table}\n\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", replace, page, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--page", type=pathlib.Path, default=PAGE)
    args = parser.parse_args()
    args.page.write_text(fill(args.page.read_text(), args.results))


if __name__ == "__main__":
    main()
