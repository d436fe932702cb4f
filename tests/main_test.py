"""The command line: what a user sees when something is wrong, and the exit status."""

import json
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
# Commands in processes of their own, which find imported what takes longest to import.
ONE_AFTER_ANOTHER = """
import json, os, runpy, sys
import apd_jax.run.experiment
for place, command in enumerate(json.loads(sys.argv[1])):
    if not os.fork():
        os.dup2(os.open(sys.argv[2] + str(place), os.O_WRONLY | os.O_CREAT), 2)
        sys.argv[1:] = command
        runpy.run_module("apd_jax.main", run_name="__main__")
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


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
        verdict = {"name": "mmcs", "description": "d", "value": 0.995, "passed": True, "seed": 3}
        for seeds, named in ((1, "PASS mmcs = 0.995 (d)"), (2, "PASS mmcs of seed 3 = 0.995 (d)")):
            results = {"verdicts": [verdict], "seeds": [{}] * seeds}
            with mock.patch.object(main.streams, "say") as say:
                status, _ = self.status({"return_value": results})
            self.assertEqual(status, 0)
            self.assertEqual(say.call_args_list[0].args, (named,))


class CommandLineTest(parameterized.TestCase):
    """Through a process, as a user would."""

    @pytest.mark.slow
    def test_bad_commands(self):
        cases = {
            r"unknown variant '9-9'; configs/tms.py has \('5-2', ": ["--config=configs/tms.py:9-9"],
            "'stepz'. Did you mean \"steps\"": ["--config=configs/tms.py", "--config.stepz=3"],
            "probability.*2": ["--config=configs/tms.py", "--config.target.probability=2"],
        }
        with tempfile.TemporaryDirectory() as folder:
            commands = [[*arguments, f"--workdir={folder}/run"] for arguments in cases.values()]
            done = self.call("-c", ONE_AFTER_ANOTHER, json.dumps(commands), f"{folder}/errors_")
            self.assertEqual(done.stdout.split(), ["1"] * len(cases), done.stderr)
            self.assertFalse((pathlib.Path(folder) / "run").exists())
            for place, message in enumerate(cases):
                errors = (pathlib.Path(folder) / f"errors_{place}").read_text()
                self.assertRegex(errors, message)
                self.assertNotIn("Traceback", errors)

    @pytest.mark.slow
    def test_workdir_in_use(self):
        with tempfile.TemporaryDirectory() as folder, Workdir(folder):
            errors = self.fail_with("--config=configs/tms.py", f"--workdir={folder}")
        self.assertRegex(errors, f"in use by process {os.getpid()} on .*: wait for it, stop it, or")

    def fail_with(self, *arguments):
        done = self.call("-m", "apd_jax.main", *arguments)
        self.assertEqual(done.returncode, 1)
        self.assertNotIn("Traceback", done.stderr)
        return done.stderr

    def call(self, *arguments):
        """Python's process with these arguments, when it has ended."""
        with tempfile.TemporaryDirectory() as cache:
            return subprocess.run(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=os.environ | {"XDG_CACHE_HOME": cache},
                capture_output=True,
                text=True,
                check=False,
            )


if __name__ == "__main__":
    absltest.main()
