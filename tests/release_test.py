"""What is installed: the public names, and the command from a wheel in an empty folder."""

import inspect
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile

import pytest
from absl.testing import absltest

import apd_jax
from apd_jax import api
from apd_jax.runtime import versions

ROOT = pathlib.Path(__file__).parent.parent
BUILD = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
SMALL = ("steps=20", "target.steps=20", "evaluation_samples=256", "evidence_samples=0")


class NamesTest(absltest.TestCase):
    def test_public_names(self):
        self.assertEqual(apd_jax.__all__, api.__all__)
        for name in api.__all__:
            self.assertIs(getattr(apd_jax, name), getattr(api, name))
        self.assertContainsSubset(api.__all__, dir(apd_jax))
        self.assertTrue(inspect.ismodule(apd_jax.plotting))
        with self.assertRaisesRegex(AttributeError, "'apd_jax' has no attribute 'Tarjet'"):
            apd_jax.Tarjet  # noqa: B018

    def test_version(self):
        self.assertRegex(apd_jax.__version__, r"^\d+\.\d+\.\d+$")
        self.assertEqual(versions.versions()["apd_jax"], apd_jax.__version__)

    def test_star(self):
        names = {}
        exec("from apd_jax import *", names)
        self.assertContainsSubset(api.__all__, names)


@pytest.mark.slow
class WheelTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.top = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())).resolve()
        self.empty = self.top / "empty"
        self.empty.mkdir()

    def call(self, *command, cwd=None, **variables):
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd or self.empty,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, 0, f"{done.stdout}\n{done.stderr}")
        return done.stdout

    def build(self):
        """The wheel of this checkout; the source archive has what is needed to build it again."""
        source = self.top / "source"
        for name in ("apd_jax", "configs"):
            shutil.copytree(
                ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        path = os.environ.get("PYTHONPATH", "")
        self.call(sys.executable, "-c", BUILD, cwd=source, PYTHONPATH=path)
        (archive,) = (source / "dist").glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            files = {name.partition("/")[2] for name in packed.getnames()}
        self.assertContainsSubset({"setup.py", "configs/tms.py", "apd_jax/py.typed"}, files)
        (wheel,) = (source / "dist").glob("*.whl")
        return wheel

    def install(self, wheel):
        """Install into an environment with the libraries of this one, but without its apd_jax."""
        environment = self.top / "environment"
        self.call(sys.executable, "-m", "venv", "--without-pip", environment)
        python = environment / "bin" / "python"
        place = self.call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        # Python reads no .pth files, such as that of our checkout, in a folder that a .pth names.
        (pathlib.Path(place.strip()) / "libraries.pth").write_text(sysconfig.get_path("purelib"))
        pip = (sys.executable, "-m", "pip", "--python", python, "--quiet")
        self.call(*pip, "install", "--no-index", "--no-deps", "--ignore-installed", wheel)
        return environment / "bin"

    def test_wheel_in_an_empty_folder(self):
        programs = self.install(self.build())
        apd = programs / "apd-jax"
        where = self.call(programs / "python", "-c", "import apd_jax; print(apd_jax.__file__)")
        self.assertStartsWith(where, str(programs.parent))
        self.assertRegex(self.call(apd, "--version"), r"^apd_jax \d+\.\d+\.\d+\n$")
        self.assertIn("5-2-robust", self.call(apd, "--help"))
        flags = [f"--config.{flag}" for flag in SMALL]
        self.call(apd, "--config=tms:5-2", *flags, XDG_CACHE_HOME=str(self.top))
        self.assertTrue((self.empty / "runs" / "tms-5-2" / "report.html").is_file())
        lines = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
        few = lines.replace("steps=500", "steps=5")  # own_run_test.py runs them as they stand
        self.assertNotEqual(few, lines)
        self.assertIn("active components", self.call(programs / "python", "-c", few))
        self.assertTrue((self.empty / "my_decomposition" / "config.json").is_file())


if __name__ == "__main__":
    absltest.main()
