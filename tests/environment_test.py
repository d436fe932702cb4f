"""The caller's environment: closed streams, caches, homes, backends of notebooks."""

import contextlib
import io
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

import jax
from absl.testing import absltest, parameterized

from apd_jax.errors import UserError
from apd_jax.runtime import compilation_cache, mesh, streams

ROOT = pathlib.Path(__file__).parent.parent

CACHE = "jax_compilation_cache_dir"
SAY = """
import runpy
streams = runpy.run_path("apd_jax/runtime/streams.py")
streams["open_missing"]()
file = open({path!r}, "w")
streams["say"]("done", "é \\udcff")
from absl import logging
logging.error("error")
print("also", flush=True)
"""
DRAW = """
import os, runpy
runpy.run_path("apd_jax/plotting/__init__.py")
import matplotlib
print(os.environ["MPLBACKEND"], matplotlib.rcParams._get("backend"))
"""


class StreamsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.file = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "metrics"

    def shell(self, redirections, **variables):
        script = SAY.format(path=str(self.file))
        return subprocess.run(
            ["bash", "-c", f'"$0" -c "$1" {redirections}', sys.executable, script],
            cwd=ROOT,
            env=os.environ | variables,
            capture_output=True,
            check=False,
        )

    @parameterized.parameters(">&-", "2>&-", "<&-", "<&- >&- 2>&-", ">&- 2>/dev/full")
    def test_closed(self, redirections):
        done = self.shell(redirections)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn(b"Traceback", done.stderr)
        self.assertEqual(self.file.read_text(), "")

    @parameterized.parameters(">/dev/full", "| true; exit ${PIPESTATUS[0]}")
    def test_nobody_reads(self, redirections):
        script = SAY.replace('print("also", flush=True)', "")
        with mock.patch.dict(globals(), SAY=script):
            done = self.shell(redirections)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn(b"Traceback", done.stderr)

    @parameterized.parameters(("utf-8", "é \\udcff"), ("ascii", "\\xe9 \\udcff"))
    def test_characters_that_an_encoding_lacks(self, encoding, text):
        done = self.shell("", PYTHONIOENCODING=encoding)
        self.assertEqual(done.stdout.decode(), f"done\n{text}\nalso\n")

    def test_stdout_without_a_file(self):
        closed = io.StringIO()
        closed.close()
        for stdout in (None, closed):
            with mock.patch.object(sys, "stdout", stdout):
                streams.say("done")


class BackendTest(parameterized.TestCase):
    @parameterized.parameters("inline_of_a_notebook", "module://nowhere", "Agg")
    def test_backend_of_a_notebook(self, backend):
        done = subprocess.run(
            [sys.executable, "-c", DRAW],
            cwd=ROOT,
            env=os.environ | {"MPLBACKEND": backend},
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        known = backend != "inline_of_a_notebook"
        self.assertRegex(done.stdout, f"^{backend} {backend if known else '<object'}")

    def test_device_that_is_not_there(self):
        for error in (RuntimeError("Unable to initialize backend 'x'"), AssertionError()):
            with (
                mock.patch.object(jax, "devices", side_effect=error),
                mock.patch.object(jax.config, "update"),
                mock.patch.dict(os.environ, JAX_PLATFORMS="x"),
                self.assertRaisesRegex(UserError, "^JAX finds no device: .*JAX_PLATFORMS='x'"),
            ):
                mesh.split_cpu(1)

    @parameterized.parameters(("a", "b", "c"), (1, 2), (0, 1, 1), ())
    def test_mesh_that_is_no_three_numbers(self, *shape):
        with (
            mock.patch.object(jax.config, "update") as update,
            self.assertRaisesRegex(UserError, "mesh must be three numbers"),
        ):
            mesh.split_cpu(1, shape)
        update.assert_not_called()

    @parameterized.parameters(
        {"JAX_NUM_CPU_DEVICES": "3"}, {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    )
    def test_number_of_devices_that_the_user_chose(self, **variables):
        with (
            mock.patch.dict(os.environ, variables),
            mock.patch.object(jax.config, "update") as update,
        ):
            mesh.split_cpu(2)
        update.assert_not_called()


class CompilationCacheTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.enterContext(contextlib.chdir(self.root))
        self.enterContext(mock.patch.dict(os.environ))  # without the cache of the tests
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
        self.addCleanup(jax.config.update, CACHE, getattr(jax.config, CACHE))
        jax.config.update(CACHE, None)

    def chosen(self, **variables):
        """The directory that is given to JAX in an environment, or None."""
        with (
            mock.patch.dict(os.environ, variables),
            mock.patch.object(jax.config, "update") as update,
        ):
            compilation_cache.enable()
        return next((pathlib.Path(call.args[1]) for call in update.call_args_list), None)

    def test_where_it_is(self):
        home, cache = str(self.root / "home"), str(self.root / "cache")
        self.assertEqual(self.chosen(XDG_CACHE_HOME=cache), self.root / "cache" / "apd_jax")
        expected = self.root / "home" / ".cache" / "apd_jax"
        for name in ("", "here", "./here"):
            self.assertEqual(self.chosen(XDG_CACHE_HOME=name, HOME=home), expected, name)
        self.assertEqual(sorted(p.name for p in self.root.iterdir()), ["cache", "home"])

    @parameterized.parameters("", "relative")
    def test_no_home(self, home):
        self.assertIsNone(self.chosen(XDG_CACHE_HOME="", HOME=home))
        self.assertEmpty(list(self.root.iterdir()))

    def test_home_that_cannot_be_had(self):
        (self.root / "file").touch()
        for path in (self.root / "file", pathlib.Path("/dev/null")):
            self.assertIsNone(self.chosen(XDG_CACHE_HOME=str(path)))
        with mock.patch.object(os.path, "expanduser", side_effect=lambda path: path):
            self.assertIsNone(self.chosen(XDG_CACHE_HOME=""))

    @parameterized.parameters("", "/somewhere")
    def test_cache_that_the_user_chose(self, path):
        self.assertIsNone(
            self.chosen(JAX_COMPILATION_CACHE_DIR=path, XDG_CACHE_HOME=str(self.root))
        )

    def test_others_may_write(self):
        (self.root / "apd_jax").mkdir()
        (self.root / "apd_jax").chmod(0o777)
        self.assertIsNone(self.chosen(XDG_CACHE_HOME=str(self.root)))


if __name__ == "__main__":
    absltest.main()
