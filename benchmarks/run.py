"""Measure time, compile time and memory of a training step: `python -m benchmarks.run`."""

import argparse
import json
import subprocess
import sys
from typing import Any

from benchmarks import options, process, tables

WORKER = [sys.executable, "-m", "benchmarks.worker"]
# Every exact route of a step's two expensive stages, and the options that choose them.
ROUTES = {
    "attributions": ("attribution_mode", ("forward", "reverse", "literal")),
    "masked pass and gradient": ("masked_route", ("grouped", "dense")),
}


def machine_rates() -> dict[str, float]:
    """Return the rates of this machine, measured in a separate process."""
    command = [sys.executable, "-m", "benchmarks.machine"]
    printed = subprocess.run(command, cwd=process.ROOT, check=True, stdout=subprocess.PIPE)
    return json.loads(printed.stdout)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one config in a separate process."""
    with process.worker(WORKER, options.request(name, args)) as asked:
        result = {key: asked.ready[key] for key in ("compile_seconds", "chunk", "machine")}
        # Measured before the stages, so that peak memory is that of training.
        result |= asked.ask({"do": "run", "seconds": args.seconds, "steps": args.steps})
        ask = {"do": "stages", "seconds": args.stage_seconds}
        if args.stage_seconds:
            result["stages"] = asked.ask({**ask, "only": None, "routes": {}})
        if args.routes:
            result["routes"] = {
                stage: {
                    route: asked.ask({**ask, "only": [stage], "routes": {option: route}})[stage]
                    for route in routes
                }
                for stage, (option, routes) in ROUTES.items()
            }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    options.add_config_options(parser)
    parser.add_argument("--seconds", type=float, default=15, help="time for timing the steps")
    parser.add_argument("--steps", type=int, help="number of timed steps, instead of --seconds")
    parser.add_argument(
        "--stage_seconds", type=float, default=0.3, help="for one timing of a stage; 0: no stages"
    )
    parser.add_argument("--routes", action="store_true", help="time the routes not taken as well")
    options.add_output_option(parser, "steps.json")
    args = parser.parse_args()
    results: dict[str, Any] = {"rates": machine_rates(), "configs": {}}
    for name in args.configs:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results["configs"][name] = measure(name, args)
        options.write(args, results)
    for table in (tables.steps, tables.stages, tables.floors, tables.routes):
        print(table(results), end="\n\n")


if __name__ == "__main__":
    main()
