"""Kill a run at random moments until it is finished, again and again, and compare what it leaves.

    python tests/soak/kills.py --kills=100 --json=tests/soak/kills.json

TMS 5-2 with two seeds, few steps and two rounds of refinement. One run is left alone. Others are
killed by SIGKILL, or asked to stop by SIGTERM, at random moments of every stage, and started again
with the same command until they finish. Whatever happens, a killed run goes on; every array, metric
and number ends bit for bit as in the run that was left alone; files that the user keeps in the
directory are untouched; and the exit status is the documented one. Ends with status 1 at the first
difference.
"""

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import pathlib
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import safetensors.numpy

from apd_jax import main

ROOT = pathlib.Path(__file__).parent.parent.parent
OVERRIDES = {
    "seeds": 2,
    "steps": 150,
    "batch_size": 64,
    "target.steps": 100,
    "target.batch_size": 64,
    "chunk_steps": 10,
    "checkpoint_every": 20,
    "evaluation_samples": 2000,
    "refine.every": 40,
    "refine.ramp": 10,
}
# What the log, or a file, shows when a stage has begun, in the order of a run.
STAGES = ("start", "target", "decomposition", "evaluation", "figures", "report", "end")
MINE = ("notes.txt", "figures/holiday.png", "components/.DS_Store", "checkpoints/mine.txt")


# A process that has imported everything, but computed nothing, is copied for every command.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["apd_jax.main", "matplotlib.backends.backend_agg"])


def command(argv: list[str], log: pathlib.Path, cache: pathlib.Path) -> None:
    """What `python -m apd_jax.main` does, in a process of its own, with its output in a file."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ["XDG_CACHE_HOME"] = str(cache)
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # nearly all time is compiling
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = argv
    main.cli()


def ended(process: multiprocessing.Process) -> int:
    """The exit status of a process, when it has one; minus the signal that ended it."""
    process.join()
    return process.exitcode


class Run:
    """A directory, and the same command on it again and again."""

    def __init__(self, root: pathlib.Path, name: str):
        self.workdir, self.log, self.cache = root / name, root / f"{name}.log", root / "cache"

    def start(self) -> multiprocessing.Process:
        flags = [f"--config.{name}={value}" for name, value in OVERRIDES.items()]
        argv = ["main", f"--config={ROOT}/configs/tms.py", *flags, f"--workdir={self.workdir}"]
        self.log.write_text("")
        process = PROCESSES.Process(target=command, args=(argv, self.log, self.cache))
        process.start()
        return process

    def stage(self, since: float) -> str:
        """How far the command is that was started at `since`."""

        def fresh(path: pathlib.Path) -> bool:
            return path.exists() and path.stat().st_mtime > since

        text = self.log.read_text(errors="replace")
        figures = [p for p in (self.workdir / "figures").glob("*.png") if p.name != "holiday.png"]
        if "results, figures and report are in" in text:
            return "end"
        if fresh(self.workdir / "report.html") or len([p for p in figures if fresh(p)]) >= 3:
            return "report"
        if any(map(fresh, figures)) or fresh(self.workdir / "results.json"):
            return "figures"
        if "decomposition: all" in text or fresh(self.workdir / "components"):
            return "evaluation"
        if fresh(self.workdir / "metrics.jsonl") or "target: all" in text:
            return "decomposition"
        if fresh(self.workdir / "target" / "metrics.jsonl"):
            return "target"
        return "start"

    def interrupt(self, stage: str, pause: float, number: int) -> tuple[str, int]:
        """Signal a command `pause` seconds after it has reached a stage.

        Returns the stage in which the signal came, and the exit status.
        """
        began = time.time()
        process = self.start()
        while process.is_alive() and STAGES.index(self.stage(began)) < STAGES.index(stage):
            time.sleep(0.01)
        end = time.monotonic() + pause
        while process.is_alive() and time.monotonic() < end:
            time.sleep(0.005)
        reached = self.stage(began)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
        return reached, ended(process)

    def finish(self) -> None:
        status = ended(self.start())
        self.expect(status == 0, f"exit status {status} of the command that finishes")

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            sys.exit(f"{self.workdir}: {what}\n{self.log.read_text(errors='replace')}")


def arrays(workdir: pathlib.Path) -> dict[str, bytes]:
    """Bytes of every component and target parameter."""
    found = {}
    for path in sorted(workdir.glob("components/seed_*/components.safetensors")):
        for name, value in safetensors.numpy.load_file(path).items():
            found[f"{path.parent.name}/{name}"] = np.ascontiguousarray(value).tobytes()
    return found


def numbers(workdir: pathlib.Path) -> list:
    """Results and metrics without what the clock has a part in."""
    results = json.loads((workdir / "results.json").read_text())
    rows = []
    for path in (workdir / "metrics.jsonl", workdir / "target" / "metrics.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            rows.append({k: v for k, v in row.items() if k != "steps_per_second"})
    return [results["seeds"], results["summary"], results["verdicts"], rows]


def figures(workdir: pathlib.Path) -> dict[str, bytes]:
    paths = (workdir / "figures").glob("*.png")
    return {path.name: path.read_bytes() for path in paths if path.name != "holiday.png"}


def put_mine(workdir: pathlib.Path) -> None:
    for name in MINE:
        path = workdir / name
        if path.parent.is_dir():
            path.write_text(f"mine: {name}")


def check_status(run: Run, number: int, reached: str, status: int) -> None:
    """A signal's documented status, or 0 where the run was done before it came."""
    text = run.log.read_text(errors="replace")
    if number == signal.SIGKILL:
        run.expect(status in (-signal.SIGKILL, 0), f"status {status} after SIGKILL")
    elif reached == "start" and status == -signal.SIGTERM:
        return  # before the first line of the program itself
    else:
        run.expect(status in (75, 0), f"status {status} after SIGTERM in {reached}")
        if status == 75:
            run.expect(bool(re.search(r"stopped at step \d+; rerun", text)), "nothing says so")
    run.expect("Traceback" not in text, "a traceback")


def soak(root: pathlib.Path, kills: int, rng: random.Random) -> Iterator[dict]:
    """Signal runs `kills` times; after each run that finishes, counts by signal and stage."""
    alone = Run(root, "alone")
    alone.finish()
    expected = arrays(alone.workdir), numbers(alone.workdir), figures(alone.workdir)
    counts = {"SIGKILL": collections.Counter(), "SIGTERM": collections.Counter()}
    done, finished = 0, 0
    while done < kills:
        run = Run(root, f"killed_{finished}")
        for stage in STAGES[:-1]:
            for _ in range(rng.choice((1, 2, 3))):
                number = rng.choice((signal.SIGKILL, signal.SIGTERM))
                put_mine(run.workdir)
                reached, status = run.interrupt(stage, rng.uniform(0, 1.5), number)
                check_status(run, number, reached, status)
                if status == 0 and reached == "end":
                    continue  # the signal came too late
                counts[signal.Signals(number).name][reached] += 1
                done += 1
        put_mine(run.workdir)
        run.finish()
        for name in MINE:
            path = run.workdir / name
            run.expect(path.read_text() == f"mine: {name}", f"{name} is touched")
        found = arrays(run.workdir), numbers(run.workdir), figures(run.workdir)
        run.expect(found == expected, "something differs from the run that was left alone")
        finished += 1
        print(f"{done} signals, {finished} runs finished, all equal", flush=True)
        yield {"signals": done, "runs finished": finished, **counts}


def run() -> None:
    """Read the options, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path, help="file for the counts")
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for counts in soak(pathlib.Path(folder), options.kills, random.Random(options.seed)):
            minutes = round((time.monotonic() - start) / 60, 1)
            words = " ".join(["python tests/soak/kills.py", *sys.argv[1:]])
            result = json.dumps({"command": words, "minutes": minutes, **counts}, indent=2)
            if options.json:
                options.json.write_text(result + "\n")
    print(result)


if __name__ == "__main__":
    run()
