"""The directory of a run: one process, one config, whole files."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from unittest import mock

import jax
import pytest
from absl.testing import absltest, parameterized

from apd_jax.runtime import file_lock, workdir
from apd_jax.runtime.workdir import Workdir, WorkdirError, WorkdirMismatch

CONFIG = {"seed": 0, "lr": 1e-3, "target": {"features": 5, "sizes": (2, 3)}, "wandb": {}}

HOLD = """
import sys, time
from apd_jax.runtime.workdir import Workdir
workdir = Workdir(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


class WorkdirTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.path = self.root / "runs" / "tms"


class PlaceTest(WorkdirTestCase):
    def test_makes_the_directory_and_names_what_is_in_it(self):
        with Workdir(self.path) as place:
            self.assertTrue(self.path.is_dir())
            self.assertEqual(place.config, self.path / "config.json")
            self.assertEqual(place.target, self.path / "target")
            self.assertEqual(place.checkpoints, self.path / "checkpoints")
            self.assertEqual(place.metrics, self.path / "metrics.jsonl")
            self.assertEqual(place.results, self.path / "results.json")
            self.assertEqual(place.figures, self.path / "figures")
            self.assertEqual(place.report, self.path / "report.html")

    @parameterized.parameters("runs", "runs/tms")
    def test_a_file_in_its_place_or_above(self, file):
        (self.root / file).parent.mkdir(exist_ok=True)
        (self.root / file).write_text("a file")
        with self.assertRaisesRegex(WorkdirError, "runs/tms is no directory.+a file in its place"):
            Workdir(self.path)

    @parameterized.parameters(
        ("tempfile.TemporaryFile", PermissionError(13, "Permission denied")),
        ("os.open", OSError(30, "Read-only file system")),
        ("apd_jax.runtime.file_lock.write", OSError(28, "No space left on device")),
    )
    def test_unwritable(self, function, error):
        with (
            mock.patch(function, side_effect=error),
            self.assertRaisesRegex(WorkdirError, f"{error.strerror}.+another workdir"),
        ):
            Workdir(self.path)
        Workdir(self.path).close()  # nothing is held after a failure

    def test_other_processes_of_a_run_touch_nothing(self):
        with (
            mock.patch.object(jax, "process_index", return_value=1),
            Workdir(self.path) as place,
        ):
            place.claim(CONFIG)
        self.assertFalse(self.path.exists())


class LockTest(WorkdirTestCase):
    def test_second_in_this_process(self):
        message = f"in use by process {os.getpid()} on "
        with Workdir(self.path), self.assertRaisesRegex(WorkdirError, message):
            Workdir(self.path)
        Workdir(self.path).close()

    @pytest.mark.slow
    def test_second_process_is_refused_until_the_first_is_killed(self):
        command = [sys.executable, "-c", HOLD, str(self.path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
            try:
                self.assertEqual(holder.stdout.readline(), "held\n")
                with self.assertRaisesRegex(WorkdirError, f"in use by process {holder.pid} on "):
                    Workdir(self.path)
            finally:
                holder.send_signal(signal.SIGKILL)
        Workdir(self.path).close()

    def test_children_do_not_keep_it(self):
        with Workdir(self.path):
            child = subprocess.Popen(["sleep", "20"], close_fds=False)
        try:
            Workdir(self.path).close()
        finally:
            child.kill()
            child.wait()

    def test_file_system_without_locks(self):
        error = OSError(38, "Function not implemented")
        with (
            mock.patch("fcntl.flock", side_effect=error),
            self.assertLogs("absl", "WARNING") as logs,
        ):
            Workdir(self.path).close()
        self.assertIn("use a workdir from one process only", logs.output[0])

    def test_no_fcntl(self):
        """As on Windows: msvcrt locks, or nothing does and that is said."""
        with (
            mock.patch.object(file_lock, "fcntl", None),
            mock.patch.object(file_lock, "msvcrt", mock.Mock(LK_NBLCK=2)) as msvcrt,
        ):
            with Workdir(self.path):
                msvcrt.locking.assert_called_once()
            msvcrt.locking.side_effect = PermissionError(13, "Permission denied")
            with self.assertRaisesRegex(WorkdirError, f"in use by process {os.getpid()}"):
                Workdir(self.path)

    def test_no_locks_at_all(self):
        with (
            mock.patch.object(file_lock, "fcntl", None),
            mock.patch.object(file_lock, "msvcrt", None),
            self.assertLogs("absl", "WARNING") as logs,
        ):
            Workdir(self.path).close()
        self.assertIn("neither fcntl nor msvcrt", logs.output[0])

    def test_imports_without_fcntl(self):
        code = "import sys; sys.modules['fcntl'] = None; import apd_jax.runtime.workdir"
        subprocess.run([sys.executable, "-c", code], check=True)


class PathTest(WorkdirTestCase):
    @parameterized.parameters(
        "gs://bucket/run", "s3://bucket", "hdfs://host/a", "file:///tmp/x", pathlib.Path("gs://b/x")
    )
    def test_remote(self, path):
        with (
            contextlib.chdir(self.root),
            self.assertRaisesRegex(WorkdirError, f"^{path} is a remote path.*: mount it"),
        ):
            Workdir(path)
        self.assertEmpty(list(self.root.iterdir()))

    @parameterized.parameters("./gs:/bucket", "C:/a", "a:b", "x/gs:/b", "/{}/gs:/b")
    def test_colons_in_names(self, path):
        with contextlib.chdir(self.root), Workdir(path.format(self.root)) as place:
            self.assertEqual(place.path, pathlib.Path(path.format(self.root)).absolute())
            self.assertTrue(place.path.is_dir())

    def test_home(self):
        with mock.patch.dict(os.environ, HOME=str(self.root)), Workdir("~/run") as place:
            self.assertEqual(place.path, self.root / "run")
        with contextlib.chdir(self.root), Workdir("./~") as place:
            self.assertEqual(place.path, self.root / "~")

    def test_home_of_nobody(self):
        with self.assertRaisesRegex(WorkdirError, "^~nobody-here/run: there is no such home"):
            Workdir("~nobody-here/run")

    @parameterized.parameters("é/" * 1300, "a" * 256)
    def test_too_long(self, path):
        with contextlib.chdir(self.root), self.assertRaisesRegex(WorkdirError, "too long"):
            Workdir(path)


class OtherPeoplesFilesTest(WorkdirTestCase):
    def hold(self, name, content="mine"):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    @parameterized.parameters(
        "figures/holiday.png",
        "metrics.jsonl",
        "report.html",
        "thesis.tex",
        ".git/config",
        "checkpoints/model.pt",
        ".lock.py",
    )
    def test_directory_that_is_not_ours(self, name):
        path = self.hold(name)
        with self.assertRaisesRegex(WorkdirError, f"{name.split('/')[0]}.*new or empty workdir"):
            Workdir(self.path)
        self.assertEqual([p for p in self.path.rglob("*") if p.is_file()], [path])
        self.assertEqual(path.read_text(), "mine")

    @parameterized.parameters(
        '{"architectures": ["Bert"], "seed": 3}', "[1, 2]", "3", "null", '"text"', "{}", "x ="
    )
    def test_config_of_another_program(self, content):
        path = self.hold("config.json", content)
        with (
            Workdir(self.path) as place,
            self.assertRaisesRegex(
                WorkdirError, "config.json (is not the config of a run|cannot be read)"
            ),
        ):
            place.claim(CONFIG)
        self.assertEqual(list(self.path.iterdir()), [path])
        self.assertEqual(path.read_text(), content)

    @parameterized.parameters(".DS_Store", "lost+found/x", ".lock", ".config.json.tmp", "._a")
    def test_what_is_nobodys(self, name):
        path = self.hold(name)
        with Workdir(self.path) as place:
            self.assertFalse(place.claim(CONFIG))
        self.assertTrue(name.startswith(".lock") or path.exists() or name.endswith(".tmp"))


class ClaimTest(WorkdirTestCase):
    def setUp(self):
        super().setUp()
        self.place = self.enterContext(Workdir(self.path))

    def test_fresh_then_again(self):
        self.assertIsNone(self.place.read_config())
        self.assertFalse(self.place.claim(CONFIG))
        self.assertTrue(self.place.claim(CONFIG))
        self.assertEqual(self.place.read_config(), json.loads(json.dumps(CONFIG)))

    def test_mismatch_names_every_field(self):
        self.place.claim(CONFIG)
        asked = {"seed": 1, "lr": 1e-3, "target": {"features": 5, "sizes": [2, 4]}, "new": "x"}
        with self.assertRaises(WorkdirMismatch) as caught:
            self.place.claim(asked)
        lines = str(caught.exception).splitlines()
        self.assertEqual(
            lines[1:],
            [
                '  new: absent -> "x"',
                "  seed: 0 -> 1",
                "  target.sizes: [2, 3] -> [2, 4]",
                "  wandb: {} -> absent",
                "Choose another workdir, or delete this one.",
            ],
        )
        self.assertEqual(self.place.read_config()["seed"], 0)

    def test_free_fields_may_change(self):
        self.place.claim(CONFIG)
        asked = CONFIG | {"wandb": {"project": "mine"}}
        self.assertTrue(self.place.claim(asked, free=("wandb",)))
        self.assertEqual(self.place.read_config()["wandb"], {"project": "mine"})
        with self.assertRaisesRegex(WorkdirMismatch, 'wandb.project: "mine" -> "yours"'):
            self.place.claim(CONFIG | {"wandb": {"project": "yours"}}, free=("wand", "wandb.name"))

    def test_a_number_that_is_now_one_of_several(self):
        self.place.claim(CONFIG | {"evidence_steps": 20})
        self.assertTrue(self.place.claim(CONFIG | {"evidence_steps": (20,)}))
        with self.assertRaisesRegex(WorkdirMismatch, "evidence_steps"):
            self.place.claim(CONFIG | {"evidence_steps": (20, 80)})

    def test_a_whole_number_is_the_same_as_a_float(self):
        self.place.claim(CONFIG | {"k": 2, "sizes": [1, 2.0], "on": True})
        asked = CONFIG | {"k": 2.0, "sizes": [1.0, 2], "on": True, "seed": 0.0}
        self.assertTrue(self.place.claim(asked))
        with self.assertRaisesRegex(WorkdirMismatch, "on: true -> 1\n"):
            self.place.claim(asked | {"on": 1})
        with self.assertRaisesRegex(WorkdirMismatch, "k: 2 -> 2.5\n"):
            self.place.claim(asked | {"k": 2.5})

    def test_whole_numbers_that_are_one_as_floats(self):
        self.place.claim(CONFIG | {"chosen": 2**53})
        with self.assertRaisesRegex(WorkdirMismatch, "chosen"):
            self.place.claim(CONFIG | {"chosen": 2**53 + 1})

    def test_a_value_under_its_former_name_is_the_same(self):
        self.place.claim(CONFIG | {"settings": {"start": "parted"}})
        self.assertTrue(self.place.claim(CONFIG | {"settings": {"start": "partitioned"}}))

    def test_field_that_came_later_had_its_default(self):
        self.place.claim(CONFIG)
        defaults = {"new": 1, "group": {"old": 2, "newer": [3]}}
        later = CONFIG | {"new": 1, "group": {"old": 2, "newer": [3]}}
        with self.assertRaisesRegex(WorkdirMismatch, "new: absent -> 1"):
            self.place.claim(later)
        with self.assertRaisesRegex(WorkdirMismatch, "new: 1 -> 5"):
            self.place.claim(later | {"new": 5}, defaults=defaults)
        self.assertTrue(self.place.claim(later, defaults=defaults))
        self.assertTrue(self.place.claim(later))  # it is in config.json now

    def test_nan_equals_nan(self):
        self.place.claim({"lr": float("nan")})
        self.assertTrue(self.place.claim({"lr": float("nan")}))

    def test_broken_config(self):
        self.place.config.write_text('{"seed": ')
        with self.assertRaisesRegex(WorkdirError, "config.json cannot be read.+put it back"):
            self.place.claim(CONFIG)


class AtomicWriteTest(WorkdirTestCase):
    def test_text_and_bytes(self):
        workdir.atomic_write_text(self.root / "a", "α\n")
        self.assertEqual((self.root / "a").read_bytes(), "α\n".encode())
        workdir.atomic_write_bytes(self.root / "a", b"\x00")
        self.assertEqual((self.root / "a").read_bytes(), b"\x00")

    @parameterized.parameters("os.fsync", "pathlib.Path.replace")
    def test_failure_leaves_what_was_there(self, function):
        path = self.root / "a"
        path.write_text("before")
        with (
            mock.patch(function, side_effect=OSError(28, "No space left on device")),
            self.assertRaisesRegex(OSError, f"No space left on device: '{path}'"),
        ):
            workdir.atomic_write_text(path, "after")
        self.assertEqual([p.name for p in self.root.iterdir()], ["a"])
        self.assertEqual(path.read_text(), "before")


if __name__ == "__main__":
    absltest.main()
