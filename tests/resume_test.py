"""A run that is killed again and again ends with the numbers of one that is left alone."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import pytest
import safetensors.numpy
from absl.testing import absltest

from apd_jax.runtime.checkpoint import Checkpointer
from apd_jax.runtime.processes import EXIT_RESUME

ROOT = pathlib.Path(__file__).parent.parent
TARGET_STEPS, STEPS, CHUNK, SAVE_EVERY = 200, 300, 10, 20
ROWS = (TARGET_STEPS + STEPS) // CHUNK
OVERRIDES = {
    "seeds": 2,
    "steps": STEPS,
    "batch_size": 64,
    "target.steps": TARGET_STEPS,
    "target.batch_size": 64,
    "chunk_steps": CHUNK,
    "checkpoint_every": SAVE_EVERY,
    "evaluation_samples": 1000,
    "evidence_samples": 0,
}
# soak/kills.py sends a hundred.
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)


def metric_files(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Those of the target and of the decomposition that are there."""
    files = (workdir / "target" / "metrics.jsonl", workdir / "metrics.jsonl")
    return [path for path in files if path.exists()]


def rows_of(path: pathlib.Path) -> list[dict]:
    """Rows without what the clock has a part in."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "steps_per_second"} for row in rows]


def files_in(workdir: pathlib.Path) -> list[str]:
    """Names of all files and directories, but for those in checkpoints and TensorBoard's."""
    names = [str(path.relative_to(workdir)) for path in workdir.rglob("*")]
    return sorted(n for n in names if not re.search(r"tensorboard/|/d/|checkpoints/\d+(/|$)", n))


def newest_step(workdir: pathlib.Path) -> int:
    return max((int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdigit()), default=0)


def last_state(directory: pathlib.Path) -> list[tuple[str, bytes]]:
    """Every leaf of the newest checkpoint: state of the optimiser and counters too."""
    with Checkpointer(directory) as checkpointer:
        state = checkpointer.restore_latest(None).state
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [(jax.tree_util.keystr(path), np.asarray(leaf).tobytes()) for path, leaf in leaves]


@pytest.mark.slow
class ResumeTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.root = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.alone = cls.root / "alone"
        with open(cls.root / "alone.log", "w") as log, cls.start(cls.alone, log) as process:
            assert process.wait() == 0, (cls.root / "alone.log").read_text()

    @classmethod
    def start(cls, workdir: pathlib.Path, log) -> subprocess.Popen:
        overrides = [f"--config.{name}={value}" for name, value in OVERRIDES.items()]
        return subprocess.Popen(
            [sys.executable, "-m", "apd_jax.main", "--config=configs/tms.py", *overrides]
            + [f"--workdir={workdir}"],
            cwd=ROOT,
            env=os.environ | {"XDG_CACHE_HOME": str(cls.root / "cache")},
            stdout=log,
            stderr=log,
        )

    def run_until(self, workdir: pathlib.Path, rows: int, number: int, pause: float) -> str:
        """Start, send a signal when it is at work and `rows` are there, and return the log."""
        path = self.root / "signalled.log"
        began = time.time()
        with open(path, "w") as log, self.start(workdir, log) as process:
            while process.poll() is None:
                files = metric_files(workdir)
                at_work = any(file.stat().st_mtime > began for file in files)
                if at_work and sum(file.read_text().count("\n") for file in files) >= rows:
                    time.sleep(pause)
                    process.send_signal(number)
                    break
                time.sleep(0.002)
            status = process.wait()
        expected = -number if number == signal.SIGKILL else EXIT_RESUME
        self.assertEqual(status, expected, path.read_text())
        return path.read_text()

    def finish(self, workdir: pathlib.Path) -> None:
        with open(self.root / "finish.log", "w") as log, self.start(workdir, log) as process:
            self.assertEqual(process.wait(), 0, (self.root / "finish.log").read_text())

    def assert_same(self, workdir: pathlib.Path) -> None:
        """Everything that a run leaves equals that of the run that was left alone."""
        for name in ("checkpoints", "target/checkpoints"):
            self.assertEqual(last_state(workdir / name), last_state(self.alone / name))
        for seed in (0, 1):
            place = f"components/seed_{seed}/components.safetensors"
            components, expected = (
                safetensors.numpy.load_file(path / place) for path in (workdir, self.alone)
            )
            self.assertEqual(components.keys(), expected.keys())
            for name, value in components.items():
                self.assertEqual(value.tobytes(), expected[name].tobytes(), name)
        for files in zip(metric_files(workdir), metric_files(self.alone), strict=True):
            self.assertEqual(*map(rows_of, files))
        steps = [row["step"] for row in rows_of(workdir / "metrics.jsonl")]
        self.assertEqual(steps, list(range(CHUNK, STEPS + 1, CHUNK)))
        results, expected = (
            json.loads((path / "results.json").read_text()) for path in (workdir, self.alone)
        )
        self.assertEqual(results["seeds"], expected["seeds"])
        self.assertEqual(results["summary"], expected["summary"])
        self.assertEqual(files_in(workdir), files_in(self.alone))

    def test_killed_and_asked_to_stop(self):
        rng = random.Random(0)
        workdir = self.root / "signalled"
        # Far enough from the end that no machine gets there before the signal does.
        moments = sorted(rng.sample(range(1, ROWS - 20), len(SIGNALS)))
        saved = 0
        for rows, number in zip(moments, SIGNALS, strict=True):
            log = self.run_until(workdir, rows, number, pause=rng.uniform(0, 0.1))
            self.assertNotIn("broken", log)
            if saved:
                self.assertIn(f"decomposition: resuming from step {saved} of {STEPS}", log)
            saved = newest_step(workdir)
            if number == signal.SIGKILL:
                self.assert_little_lost(workdir, saved)
            else:
                self.assert_all_kept(workdir, log)
        self.finish(workdir)
        self.assert_same(workdir)

    def assert_little_lost(self, workdir: pathlib.Path, saved: int) -> None:
        """Of a killed run: one save may have been under way."""
        if saved:
            last = rows_of(workdir / "metrics.jsonl")[-1]["step"]
            self.assertLess(last - saved, 2 * SAVE_EVERY + CHUNK)

    def assert_all_kept(self, workdir: pathlib.Path, log: str) -> None:
        """Of a run that was asked to stop."""
        self.assertRegex(log, r"stopped at step \d+; rerun the command to resume")
        name, step = re.findall(r"(\w+) stopped at step (\d+);", log)[0]
        place = workdir / "target" if name == "target" else workdir
        self.assertEqual(newest_step(place), int(step))
        if int(step):
            self.assertEqual(rows_of(place / "metrics.jsonl")[-1]["step"], int(step))


if __name__ == "__main__":
    absltest.main()
