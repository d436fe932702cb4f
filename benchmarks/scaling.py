"""Time per step against the number of components and the width: `python -m benchmarks.scaling`."""

import argparse
import pathlib
import statistics
import sys
from typing import Any, NamedTuple

from matplotlib import ticker
from matplotlib.figure import Figure

from apd_jax.plotting import style
from benchmarks import options, process, tables
from benchmarks.run import WORKER

PLOT = process.ROOT / "docs" / "images" / "performance_scaling.png"


class Sweep(NamedTuple):
    """A sweep of one size with all others fixed.

    Attributes:
      title: Title with the varied size and the network.
      letter: Letter of the varied size.
      config: One of the paper's configs.
      field: Field of the config that is varied.
      values: Values of the field.
      fixed: Other fields that differ from the config.
    """

    title: str
    letter: str
    config: str
    field: str
    values: tuple[int, ...]
    fixed: dict[str, Any]


_MANY = (50, 150, 500, 1500, 5000)
# Batch and rank are below the paper's where thousands of components would not fit a laptop.
SWEEPS = {
    "tms": Sweep(
        "Components, TMS 40-10, batch 256", "C", "tms:40-10", "num_components", _MANY,
        {"batch_size": 256, "seeds": 1},
    ),
    "resid_mlp": Sweep(
        "Components, residual MLP with 1 layer, rank 8", "C", "resid_mlp:1", "num_components",
        _MANY, {"rank": 8},
    ),
    "width": Sweep(
        "Residual width, residual MLP with 1 layer, C = 130", "d", "resid_mlp:1",
        "target.d_resid", (250, 500, 1000, 2000, 4000), {},
    ),
}  # fmt: skip


def measure(sweep: Sweep, args: argparse.Namespace) -> dict[str, Any]:
    """Measure the time per step at every value of a sweep."""
    points = []
    for value in args.values or sweep.values:
        print(f"{sweep.title}: {sweep.letter} = {value} ...", file=sys.stderr, flush=True)
        request = options.request(sweep.config, args, **sweep.fixed, **{sweep.field: value})
        with process.worker(WORKER, request) as asked:
            answer = asked.ask({"do": "run", "seconds": args.seconds, "steps": args.steps})
        points.append(
            {
                "value": value,
                "seconds": statistics.median(answer["seconds_per_step"]),
                "seconds_per_step": answer["seconds_per_step"],
                "peak_memory": answer["peak_memory"],
            }
        )
    return {"title": sweep.title, "letter": sweep.letter, "points": points}


@style.styled
def plot(results: dict[str, Any]) -> Figure:
    """Plot time per step on logarithmic axes, one panel per sweep, with proportional growth."""
    sweeps = results["sweeps"]
    figure = style.new_figure(3.2)
    axes = figure.subplots(1, len(sweeps), squeeze=False)[0]
    for sweep, axis in zip(sweeps, axes, strict=True):
        values = [point["value"] for point in sweep["points"]]
        times = [point["seconds"] * 1e3 for point in sweep["points"]]
        proportional = [times[-1] * value / values[-1] for value in values]
        axis.plot(
            values, proportional, ":", color=style.GREY, label=f"proportional to {sweep['letter']}"
        )
        axis.plot(values, times, color=style.BLUE, marker="o", markersize=4, label="measured")
        axis.set(xscale="log", yscale="log", xlabel=f"${sweep['letter']}$", ylabel="ms per step")
        axis.set_xticks(values, [str(value) for value in values])
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
        axis.set_title(sweep["title"].replace(", ", "\n", 1))
        axis.grid(color=style.FAINT, linewidth=0.5)
        axis.legend(loc="upper left")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    options.add_state_options(parser)
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--values", nargs="+", type=int, help="other values of what grows")
    parser.add_argument("--seconds", type=float, default=8, help="for each point")
    parser.add_argument("--steps", type=int, help="steps for each point, instead of --seconds")
    parser.add_argument("--plot", type=pathlib.Path, default=PLOT, help="default: %(default)s")
    options.add_output_option(parser, "scaling.json")
    parser.set_defaults(warm=40, chunk=5)
    args = parser.parse_args()
    results = {"sweeps": [measure(SWEEPS[name], args) for name in args.sweeps]}
    options.write(args, results)
    print("\n" + tables.scaling(results))
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    args.plot.write_bytes(style.to_png(plot(results)))


if __name__ == "__main__":
    main()
