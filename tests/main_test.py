"""The command line: what a user sees when something is wrong, and the exit status."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import types
from unittest import mock

import pytest
from absl import logging
from absl.testing import absltest, parameterized

from apd_jax import main
from apd_jax.errors import UserError
from apd_jax.run import commands, experiment
from apd_jax.runtime import loop
from apd_jax.runtime.checkpoint import CheckpointError
from apd_jax.runtime.outcome import Diverged
from apd_jax.runtime.workdir import Workdir, WorkdirError

ROOT = pathlib.Path(__file__).parent.parent


class StatusTest(parameterized.TestCase):
    def status(self, outcome):
        """Exit status and log of a run with this outcome."""
        main.flags.FLAGS.mark_as_parsed()  # all others have their defaults
        config = types.SimpleNamespace(name="tms", variant="5-2", seeds=1, mesh=None)
        with (
            mock.patch.object(main, "_CONFIG", types.SimpleNamespace(value=config)),
            mock.patch.object(main, "_WORKDIR", types.SimpleNamespace(value=None)),
            mock.patch.object(commands.compilation_cache, "enable"),
            mock.patch.object(main, "_join"),
            mock.patch.object(main.mesh, "split_cpu"),
            mock.patch.object(experiment, "run", **outcome) as run,
            self.assertLogs("absl", "INFO") as logs,
        ):
            logging.info("begin")
            status = main.main(["main"])
        self.assertEqual(run.call_args.args, (config, "runs/tms-5-2"))
        return status, logs.records[1:]

    @parameterized.parameters(UserError, WorkdirError, CheckpointError, Diverged, OSError)
    def test_what_a_user_can_mend_is_one_line(self, kind):
        status, records = self.status({"side_effect": kind("do this")})
        self.assertEqual(status, 1)
        self.assertEqual([record.getMessage() for record in records], ["do this"])
        self.assertIsNone(records[0].exc_info)

    @parameterized.parameters(ValueError, TypeError, ImportError)
    def test_what_is_our_mistake_keeps_its_traceback(self, kind):
        with self.assertRaises(kind):
            self.status({"side_effect": kind("oops")})

    def test_stopped(self):
        status, records = self.status({"side_effect": loop.Stopped(30, "decomposition")})
        self.assertEqual(status, 75)
        message = "decomposition stopped at step 30; rerun the command to resume"
        self.assertEqual(records[0].getMessage(), message)

    def test_second_ctrl_c(self):
        status, records = self.status({"side_effect": KeyboardInterrupt})
        self.assertEqual(status, 128 + signal.SIGINT)
        self.assertIn(
            "rerun the command to resume from the last checkpoint", records[0].getMessage()
        )

    def test_done(self):
        verdict = {"name": "mmcs_mean", "description": "d", "value": 0.995, "passed": True}
        status, _ = self.status({"return_value": {"verdicts": [verdict]}})
        self.assertEqual(status, 0)


class CommandLineTest(parameterized.TestCase):
    """Through a process, as a user would."""

    @pytest.mark.slow
    def test_unknown_variant(self):
        message = r"unknown variant '9-9'; configs/tms.py has \('5-2', "
        self.check_bad_command("configs/tms.py:9-9", (), message)

    @parameterized.parameters(
        ("configs/tms.py", ("--config.stepz=3",), "'stepz' Did you mean \"steps\""),
        ("configs/tms.py", ("--config.target.probability=2",), "probability.*2"),
    )
    @pytest.mark.slow
    def test_bad_command(self, config, arguments, message):
        self.check_bad_command(config, arguments, message)

    def check_bad_command(self, config, arguments, message):
        with tempfile.TemporaryDirectory() as folder:
            workdir = pathlib.Path(folder) / "run"
            errors = self.fail_with(f"--config={config}", f"--workdir={workdir}", *arguments)
            self.assertFalse(workdir.exists())
        self.assertRegex(errors, message)

    @pytest.mark.slow
    def test_workdir_in_use(self):
        with tempfile.TemporaryDirectory() as folder, Workdir(folder):
            errors = self.fail_with("--config=configs/tms.py", f"--workdir={folder}")
        self.assertRegex(errors, f"in use by process {os.getpid()} on .*: wait for it, stop it, or")

    def fail_with(self, *arguments):
        with tempfile.TemporaryDirectory() as cache:
            done = subprocess.run(
                [sys.executable, "-m", "apd_jax.main", *arguments],
                cwd=ROOT,
                env=os.environ | {"XDG_CACHE_HOME": cache},
                capture_output=True,
                text=True,
                check=False,
            )
        self.assertEqual(done.returncode, 1)
        self.assertNotIn("Traceback", done.stderr)
        return done.stderr


if __name__ == "__main__":
    absltest.main()
