"""A training in its directory: resumes, says what went wrong, loses nothing."""

import contextlib
import json
import os
import pathlib
import resource
import shutil
import subprocess
import tempfile
import time
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from stop_flags import FlagAfter

from apd_jax.errors import UserError
from apd_jax.runtime import loop, session
from apd_jax.runtime.checkpoint import Checkpointer, CheckpointError
from apd_jax.runtime.outcome import Diverged
from apd_jax.runtime.stores import Keeping

SEEDS = jnp.array([3, 4], jnp.uint32)
STEPS, CHUNK, SAVE_EVERY = 30, 5, 10


class State(NamedTuple):
    step: jax.Array
    weight: jax.Array


def init_state(width=3):
    return State(jnp.zeros(2, jnp.int32), jnp.ones((2, width)))


class Training:
    """A training without data; `fields` replace its own."""

    steps, seeds, between, feed, layout = STEPS, SEEDS, None, None, None

    def __init__(self, growth, width, **fields):
        self.context, self.width = jnp.full(2, growth, jnp.float32), width
        self.step = step_fn
        for name, value in fields.items():
            setattr(self, name, value)

    def init_state(self):
        return init_state(self.width)


def step_fn(growth, state, key):
    weight = growth * state.weight + 0.1 * jax.random.normal(key, state.weight.shape)
    metrics = {"loss/total": jnp.mean(weight**2), "learning_rate": jnp.float32(0.1)}
    return State(state.step + 1, weight), metrics


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


class SessionTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "run"

    @property
    def checkpoints(self):
        return self.directory / "checkpoints"

    def fit(self, flag=None, growth=0.9, width=3, tensorboard=True, **fields):
        outcome = session.fit(
            Training(growth, width, **fields),
            self.directory,
            name="training",
            keeping=Keeping(CHUNK, SAVE_EVERY, 3, {"seed": 3}, tensorboard),
            flag=flag,
        )
        return outcome.state, outcome.seconds

    def stop_at(self, step, **fields):
        with self.assertRaises(loop.Stopped):
            self.fit(FlagAfter(step // CHUNK), **fields)

    def alone(self, **fields):
        """The state of a run that nothing happened to, in memory."""
        keeping = Keeping(CHUNK, SAVE_EVERY)
        return session.fit(
            Training(0.9, **{"width": 3} | fields), name="alone", keeping=keeping
        ).state

    def steps_on_disk(self):
        return sorted(int(p.name) for p in self.checkpoints.iterdir() if p.name.isdigit())

    def rows(self):
        return [json.loads(row) for row in (self.directory / "metrics.jsonl").open()]


class RowsTest(SessionTestCase):
    @parameterized.parameters(None, 8)
    def test_a_directory_gives_the_rows_of_memory(self, every):
        between = every and loop.Between(every, STEPS, lambda context, state, key: state)
        training = Training(0.9, 3, between=between)
        found = [
            session.fit(training, place, name="rows", keeping=Keeping(CHUNK, SAVE_EVERY)).rows
            for place in (self.directory, None)
        ]
        steps = [[row["step"] for row in rows] for rows in found]
        self.assertEqual(steps[0], steps[1])
        self.assertLen(steps[0], 8 if every else 6)


class GoesOnTest(SessionTestCase):
    @parameterized.parameters(5, 10, 25)
    def test_stop_saves_and_the_next_command_goes_on(self, step):
        with self.assertRaisesRegex(loop.Stopped, f"^training stopped at step {step}$"):
            self.fit(FlagAfter(step // CHUNK))
        self.assertEqual(self.steps_on_disk()[-1], step)
        with self.assertLogs("absl", "INFO") as logs:
            state, _ = self.fit()
        self.assertIn(f"training: resuming from step {step} of 30", logs.output[0])
        self.assertEqual(bits(state), bits(self.alone()))
        self.assertEqual([row["step"] for row in self.rows()], [5, 10, 15, 20, 25, 30])

    def test_asked_before_the_first_step(self):
        with self.assertRaisesRegex(loop.Stopped, "stopped at step 0"):
            self.fit(FlagAfter(0))

    def test_finished_is_not_trained_again(self):
        state, seconds = self.fit()
        with (
            mock.patch.object(loop, "run_steps", side_effect=AssertionError("trained again")),
            self.assertLogs("absl", "INFO") as logs,
        ):
            again, same_seconds = self.fit()
        self.assertIn("training: all 30 steps are done", logs.output[0])
        self.assertEqual(bits(again), bits(state))
        self.assertEqual(same_seconds, seconds)

    @parameterized.parameters(10, STEPS)
    def test_checkpoints_of_another_context_are_refused(self, step):
        self.fit() if step == STEPS else self.stop_at(step)
        files = sorted(self.directory.rglob("*"))
        with self.assertRaisesRegex(
            UserError, f"training: step {step} in .*/run was made with another .*another workdir"
        ):
            self.fit(growth=np.nextafter(np.float32(0.9), np.float32(1)))
        self.assertEqual(sorted(self.directory.rglob("*")), files)
        self.fit()

    def test_finished_counts_although_asked_to_stop(self):
        state, _ = self.fit()
        self.assertEqual(bits(self.fit(FlagAfter(0))[0]), bits(state))

    def test_seconds_add_up(self):
        clock = time.monotonic
        with mock.patch.object(time, "monotonic", lambda: 1000 * clock()):
            self.stop_at(10)
        with Checkpointer(self.checkpoints) as checkpointer:
            before = checkpointer.restore_latest(None).metadata["seconds"]
        began = clock()
        _, seconds = self.fit()
        self.assertBetween(seconds, before, before + clock() - began)

    def test_checkpoint_holds_the_config(self):
        self.stop_at(10)
        with Checkpointer(self.checkpoints) as checkpointer:
            self.assertEqual(checkpointer.restore_latest(None).metadata["config"], {"seed": 3})

    def test_row_is_on_disk_before_the_checkpoint_of_its_step(self):
        test, save = self, Checkpointer.save

        def looking(checkpointer, step, state, metadata):
            test.assertEqual(test.rows()[-1]["step"], step)
            save(checkpointer, step, state, metadata)

        with mock.patch.object(Checkpointer, "save", looking):
            self.fit()

    def test_loggers_are_as_asked(self):
        self.fit(tensorboard=False)
        self.assertFalse((self.directory / "tensorboard").exists())
        self.assertEqual(self.rows()[0]["learning_rate"], np.float32(0.1))
        self.assertNotIn("steps_per_second", self.rows()[0])
        self.assertGreater(self.rows()[-1]["steps_per_second"], 0)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def largest(step):
    files = [path for path in (step / "state").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


DAMAGES = {
    "truncated": lambda step: truncate(largest(step)),
    "flipped": lambda step: flip(largest(step)),
    "missing": lambda step: shutil.rmtree(step / "state"),
    "empty": lambda step: [shutil.rmtree(step), step.mkdir()],
}


class DamagedTest(SessionTestCase):
    @parameterized.product(damage=list(DAMAGES), step=(25, 30))
    @pytest.mark.slow
    def test_goes_on_from_the_one_before(self, damage, step):
        if step == STEPS:
            self.fit()
        else:
            self.stop_at(step)
        DAMAGES[damage](self.checkpoints / str(step))
        with self.assertLogs("absl", "INFO") as logs:
            state, _ = self.fit()
        self.assertRegex(logs.output[0], f"WARNING.*checkpoints/{step} is damaged and was skipped")
        self.assertIn("resuming from step 20 of 30", logs.output[1])
        self.assertEqual(bits(state), bits(self.alone()))
        self.assertEqual([row["step"] for row in self.rows()], [5, 10, 15, 20, 25, 30])

    def test_none_whole(self):
        self.stop_at(10)
        shutil.rmtree(self.checkpoints / "10" / "state")
        with self.assertRaisesRegex(CheckpointError, "(?s)is intact:.*step 10"):
            self.fit()


class DivergedTest(SessionTestCase):
    def test_names_step_term_and_last_good_checkpoint(self):
        with self.assertRaises(Diverged) as caught:
            self.fit(growth=10)  # the largest float is 3e38, less than 10 ** (2 * 20)
        good = self.steps_on_disk()[-1]
        self.assertRegex(
            str(caught.exception),
            rf"^training: loss/total stopped being finite at step 20, .*\[0, 1\].*"
            rf"The last good checkpoint is {self.checkpoints}/{good}$",
        )
        with Checkpointer(self.checkpoints) as checkpointer:
            for step in checkpointer.steps():
                state = checkpointer.restore_latest(None).state
                self.assertTrue(np.isfinite(state["weight"]).all(), step)
        rows = self.rows()
        self.assertTrue(all(np.isfinite(row["loss/total"]).all() for row in rows))
        message = str(caught.exception)
        with self.assertRaises(Diverged) as caught:  # the same command comes to the same end
            self.fit(growth=10)
        self.assertEqual(str(caught.exception), message)
        self.assertEqual(self.rows()[: len(rows)], self.rows())

    def test_before_the_first_save(self):
        with self.assertRaisesRegex(Diverged, "No checkpoint had been saved.$"):
            self.fit(growth=np.nan)
        self.assertEmpty(self.steps_on_disk())
        self.assertEmpty(self.rows())


@contextlib.contextmanager
def file_size_limit(size):
    """Files grow no further, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class FullDiskTest(SessionTestCase):
    def test_checkpoint(self):
        self.stop_at(10, width=20_000)
        with (
            file_size_limit(1 << 16),
            self.assertRaisesRegex(
                CheckpointError, "(?s)step 20 cannot.*File too large.*Free disk space"
            ),
        ):
            self.fit(width=20_000)
        self.assertEqual(self.steps_on_disk(), [10])
        state, _ = self.fit(width=20_000)
        self.assertEqual(bits(state), bits(self.alone(width=20_000)))
        self.assertEqual([row["step"] for row in self.rows()], [5, 10, 15, 20, 25, 30])

    def test_metrics(self):
        self.stop_at(10, tensorboard=False)
        size = (self.directory / "metrics.jsonl").stat().st_size
        with (
            file_size_limit(size + 50),
            self.assertRaisesRegex(OSError, "the metrics cannot be written .File too large.*free"),
        ):
            self.fit(tensorboard=False)
        self.assertEqual(self.steps_on_disk(), [10])
        state, _ = self.fit()
        self.assertEqual(bits(state), bits(self.alone()))
        self.assertEqual([row["step"] for row in self.rows()], [5, 10, 15, 20, 25, 30])


class SmallDiskTest(SessionTestCase):
    """On a file system of its own, which takes a superuser."""

    def setUp(self):
        super().setUp()
        self.disk = self.directory.parent / "disk"
        self.disk.mkdir()
        self.directory = self.disk / "run"
        self.mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", self.disk)
        self.addCleanup(subprocess.run, ["umount", self.disk], check=True)

    def mount(self, *arguments):
        if shutil.which("mount") is None or os.geteuid() != 0:
            self.skipTest("only a superuser can make a small disk")
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            self.skipTest(f"no small disk here: {done.stderr.strip()}")

    def test_full(self):
        self.stop_at(10, width=20_000)
        with (
            contextlib.suppress(OSError),
            open(self.disk / "filler", "wb", buffering=0) as file,
        ):
            while True:
                file.write(bytes(1 << 12))
        with self.assertRaisesRegex(
            (CheckpointError, OSError), "(?s)No space left.*[Ff]ree disk space"
        ):
            self.fit(width=20_000)
        self.assertEqual(self.steps_on_disk(), [10])
        (self.disk / "filler").unlink()
        state, _ = self.fit(width=20_000)
        self.assertEqual(bits(state), bits(self.alone(width=20_000)))
        self.assertEqual([row["step"] for row in self.rows()], [5, 10, 15, 20, 25, 30])

    def test_becomes_read_only(self):
        self.stop_at(10)
        self.mount("-o", "remount,ro", self.disk)
        with self.assertRaisesRegex(OSError, "Read-only file system"):
            self.fit()
        self.mount("-o", "remount,rw", self.disk)
        self.assertEqual(bits(self.fit()[0]), bits(self.alone()))


if __name__ == "__main__":
    absltest.main()
