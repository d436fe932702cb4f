"""Command line: `apd-jax --config=tms:40-10 --workdir=DIR`, or `python -m apd_jax.main ...`."""

import shlex
import sys
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from apd_jax.run import command_line, commands
from apd_jax.runtime import mesh, preemption, processes, streams

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, such as tms:5-2.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, for several processes."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of this run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a cluster that JAX knows (SLURM, TPU pods)."
)
_PLAN = flags.DEFINE_bool("plan", False, "Print what a step takes on each device, and run nothing.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; runs/NAME-VARIANT if unset.")


def main(argv: list[str]) -> int:
    """Run the experiment that the flags describe, and return the exit status."""
    if not commands.prepare(_CONFIG, argv):
        return 1
    with processes.all_or_none():
        return processes.end(commands.status_of(_run))


def _join() -> None:
    """Join the other processes that the flags name, if there are any."""
    given = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    processes.start(*given, detect=_DISTRIBUTED.value)


def _run() -> int:
    """Run the experiment, or print its plan, and return the exit status."""
    _join()
    from apd_jax.run import experiment, setup  # not for --help: they import every library

    config = _CONFIG.value
    mesh.split_cpu(max(config.seeds, 1), config.mesh)
    if _PLAN.value:
        needed = setup.requirements_of(setup.read_setup(config))
        if jax.process_index() == 0:
            streams.say(str(needed))
        return 0
    workdir = _WORKDIR.value or f"runs/{config.name}-{config.variant}".rstrip("-")
    command = shlex.join(["python", "-m", "apd_jax.main", *sys.argv[1:]])
    with preemption.catch_signals() as flag:
        results = experiment.run(config, workdir, command=command, flag=flag)
    if jax.process_index() == 0:
        _say(results, workdir)
    return 0


def _say(results: dict[str, Any], workdir: str) -> None:
    """Print the verdicts of a run."""
    from apd_jax.run import seed_evidence

    for verdict in results["verdicts"]:
        sign = "PASS" if verdict["passed"] else "FAIL"
        worst = len(results["seeds"]) > 1 and "seed" in verdict
        name = f"{verdict['name']} of seed {verdict['seed']}" if worst else verdict["name"]
        streams.say(f"{sign} {name} = {verdict['value']:.4g} ({verdict['description']})")
    for seed, found in results.get("evidence_verdicts", {}).items():
        if found["failed"] == [seed_evidence.NOT_MEASURED]:
            streams.say(f"evidence of seed {seed}: {seed_evidence.NOT_MEASURED}; see the log")
            continue
        failed = f"; FAIL {', '.join(found['failed'])}" if found["failed"] else ""
        total = found["passed"] + len(found["failed"])
        streams.say(f"evidence of seed {seed}: {found['passed']} of {total} verdicts pass{failed}")
    streams.say(f"results, figures and report are in {workdir}")


def cli() -> None:
    """Entry point of the installed command."""
    commands.start(main, _CONFIG, screen=command_line.help_text)


if __name__ == "__main__":
    cli()
