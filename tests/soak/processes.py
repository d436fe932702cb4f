"""Kill one of several processes at random, rerun the command until it finishes, and compare.

    python tests/soak/processes.py --processes=4 --kills=10

TMS 5-2 for a few steps on a mesh over N processes of one device each. One run is left alone. In
another, a process drawn at random gets SIGKILL at a random moment, again and again; the others have
to end by themselves within a minute, and the same command has to resume. Its components have to end
bit for bit as those of the run that was left alone. Then one process gets SIGTERM, and all have to
save and exit with status 75 within 20 seconds. Ends with status 1 at the first difference.
"""

import argparse
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import safetensors.numpy

ROOT = pathlib.Path(__file__).parent.parent.parent
OVERRIDES = {
    "steps": 120,
    "num_components": 8,
    "batch_size": 64,
    "target.steps": 20,
    "target.batch_size": 64,
    "chunk_steps": 5,
    "checkpoint_every": 20,
    "evaluation_samples": 200,
    "evidence_samples": 0,
}


class Run:
    """A directory, and the same command on it in N processes, again and again."""

    def __init__(self, root: pathlib.Path, name: str, count: int, mesh: str):
        self.workdir, self.log, self._count = root / name, root / f"{name}.log", count
        self._arguments = ["--config=configs/tms.py:5-2", f"--workdir={self.workdir}"]
        self._arguments += [f"--config.{name}={value}" for name, value in OVERRIDES.items()]
        self._arguments += [f"--config.mesh={mesh}"] if mesh else []
        quick = "--xla_backend_optimization_level=0"
        cache = str(root / "cache")
        self._environment = os.environ | {"XLA_FLAGS": quick, "XDG_CACHE_HOME": cache}

    def start(self) -> subprocess.Popen:
        """Start the command; the log of the command before it is replaced."""
        return subprocess.Popen(
            ["bash", ROOT / "launch/local_processes.sh", str(self._count), *self._arguments],
            cwd=ROOT,
            env=self._environment,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )

    def processes(self) -> list[int]:
        """The numbers of the command's processes, in their order."""
        found = {}
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue  # it has just ended
            if f"--workdir={self.workdir}" in words and "-m" in words:
                place = next(w for w in words if w.startswith("--process_id="))
                found[place] = int(path.parent.name)
        return [found[place] for place in sorted(found)]

    def wait_for_steps(self, command: subprocess.Popen) -> bool:
        """Wait until steps of the decomposition are logged; False if the command ends before."""
        while command.poll() is None:
            if "decomposition: " in self.log.read_text():
                return True
            time.sleep(0.1)
        return False

    def components(self) -> dict[str, np.ndarray]:
        """The components of a finished run."""
        path = self.workdir / "components/seed_0/components.safetensors"
        return safetensors.numpy.load_file(path)


def check(holds: bool, what: str, run: Run) -> None:
    """End with status 1 unless something holds."""
    if not holds:
        sys.exit(f"{what}; the end of {run.log}:\n{run.log.read_text()[-3000:]}")


def kill_one(run: Run, draw: random.Random) -> float | None:
    """Kill a random process at a random moment; seconds until the others ended, None if all had."""
    command = run.start()
    in_steps = draw.random() < 0.7
    if in_steps and not run.wait_for_steps(command):
        check(command.returncode == 0, "the command failed by itself", run)
        return None
    time.sleep(draw.uniform(0, 4) if in_steps else draw.uniform(2, 15))
    alive = run.processes()
    if not alive:
        check(command.wait() == 0, "the command failed by itself", run)
        return None
    os.kill(draw.choice(alive), signal.SIGKILL)
    begun = time.monotonic()
    status = command.wait()
    check(status != 0 or not run.processes(), "a killed run ended with status 0", run)
    return time.monotonic() - begun


def terminate_one(run: Run, draw: random.Random) -> float:
    """Send SIGTERM to a random process; seconds until all ended, with status 75."""
    command = run.start()
    check(run.wait_for_steps(command), "the run ended before SIGTERM", run)
    begun = time.monotonic()
    os.kill(draw.choice(run.processes()), signal.SIGTERM)
    status = command.wait()
    check(status == 75, f"SIGTERM ended the run with status {status}, not 75", run)
    stopped = re.findall("stopped at step", run.log.read_text())
    check(bool(stopped), "no process said that it stopped", run)
    return time.monotonic() - begun


def main() -> None:
    """Kill as often as asked for, and print what was seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--mesh", default="", help="such as 1,2,2; the default if empty")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        alone = Run(root, "alone", given.processes, given.mesh)
        check(alone.start().wait() == 0, "the run that is left alone failed", alone)
        expected, kills, number = alone.components(), 0, 0
        while kills < given.kills:
            number += 1
            run = Run(root, f"killed_{number}", given.processes, given.mesh)
            seconds: float | None = 0.0
            while seconds is not None and kills < given.kills:
                seconds = kill_one(run, draw)
                if seconds is not None:
                    kills += 1
                    print(f"kill {kills}: the others ended after {seconds:.1f} s", flush=True)
                    check(seconds < 60, "the others did not end within a minute", run)
            check(run.start().wait() == 0, "the run does not finish", run)
            found = run.components()
            same = all(np.array_equal(found[name], expected[name]) for name in expected)
            check(same and found.keys() == expected.keys(), "other components", run)
            print(f"run {number} ended with the same components, bit for bit", flush=True)
        asked = Run(root, "asked", given.processes, given.mesh)
        seconds = terminate_one(asked, draw)
        print(f"SIGTERM: all ended with status 75 after {seconds:.1f} s", flush=True)
        check(seconds < 20, "that took 20 s or more", asked)


if __name__ == "__main__":
    main()
