"""Command line of sweeps: `python -m apd_jax.sweep --config=tms:5-2 --grid topk=0.2,0.3`."""

import math
import shlex
import sys

from absl import flags
from ml_collections import config_flags

from apd_jax.run import commands, grid, sweep
from apd_jax.runtime import mesh, preemption, streams

_USAGE = """\
Run an experiment at every point of a grid of its fields, and report on all runs together:

  python -m apd_jax.sweep --config=CONFIG --grid FIELD=VALUE,VALUE [--grid ...] [--seeds=N]
                          [--workdir=DIR] [--config.FIELD=VALUE ...]

A coefficient may be named without `coefficients.`: --grid simplicity=0.3,0.7. Runs that differ in
numbers alone (coefficients, learning rate, k, powers, thresholds) share one compiled program and
are trained side by side. DIR (runs/sweep-NAME-VARIANT if unset) gets report.html, sweep.json, and
an ordinary directory of every run. Rerunning the command resumes the sweep. --help=fields lists
all fields."""

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, such as tms:5-2.")
_GRID = flags.DEFINE_multi_string("grid", [], "Field and its values, such as simplicity=0.3,0.7.")
_SEEDS = flags.DEFINE_integer("seeds", None, "Number of seeds of every run; the config's if unset.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory; runs/sweep-NAME-VARIANT if unset.")
_OWN = ("grid", "seeds", "workdir")


def main(argv: list[str]) -> int:
    """Run the sweep that the flags describe, and return the exit status."""
    if not commands.prepare(_CONFIG, argv):
        return 1
    return commands.status_of(_run)


def _run() -> int:
    config = _CONFIG.value
    if _SEEDS.value is not None:
        config.seeds = _SEEDS.value
    swept = grid.read_grid(config, _GRID.value)
    runs = math.prod(len(values) for values in swept.values())
    mesh.split_cpu(max(config.seeds, 1) * runs, config.mesh)
    workdir = _WORKDIR.value or f"runs/sweep-{config.name}-{config.variant}".rstrip("-")
    command = shlex.join(["python", "-m", "apd_jax.sweep", *sys.argv[1:]])
    with preemption.catch_signals() as flag:
        results = sweep.run(
            config,
            swept,
            workdir,
            arguments=_without_own(sys.argv[1:]),
            command=command,
            flag=flag,
        )
    for run in results["runs"]:
        rate = run["summary"].get("solve_rate")
        found = f"solve rate {rate:.3g}" if rate is not None else run["reason"] or run["state"]
        streams.say(f"{run['name']}: {found}")
    streams.say(f"table, heat maps and every run are in {workdir}")
    return 0


def _without_own(arguments: list[str]) -> list[str]:
    """The arguments that `apd_jax.main` has too, but for the directory."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        name, equals, _ = argument.lstrip("-").partition("=")
        own = argument.startswith("-") and name in _OWN
        if not skip and not own:
            kept.append(argument)
        skip = own and not equals
    return kept


def cli() -> None:
    """Entry point of the installed command."""
    commands.start(main, _CONFIG, screen=lambda: _USAGE)


if __name__ == "__main__":
    cli()
