"""The fault of XLA is avoided, said where it can't be, and no other version gets the flag."""

import os
import subprocess
import sys
import textwrap
from unittest import mock

import pytest
from absl.testing import absltest, parameterized

from apd_jax.programs import compiler_fault


class FlagTest(parameterized.TestCase):
    @parameterized.parameters(
        ("0.10.2", "", compiler_fault._SETTING),
        ("0.10.2", "--a=1", f"--a=1 {compiler_fault._SETTING}"),
        ("0.10.2", f"--{compiler_fault._FLAG}=X", f"--{compiler_fault._FLAG}=X"),
        ("0.10.2", "/a/file", "/a/file"),
        ("0.10.1", "", ""),
    )
    def test_set_for_the_faulty_version_alone(self, version, before, after):
        with (
            mock.patch.object(compiler_fault.importlib.metadata, "version", return_value=version),
            mock.patch.dict(os.environ, {"XLA_FLAGS": before}),
        ):
            compiler_fault.avoid()
            self.assertEqual(os.environ["XLA_FLAGS"], after)


class ProgramTest(absltest.TestCase):
    def test_is_right_here(self):
        self.assertFalse(compiler_fault.is_present())

    @pytest.mark.slow
    @absltest.skipUnless(compiler_fault._is_faulty(), "another version of jaxlib")
    def test_warns_where_jax_computed_before(self):
        script = """
            import jax
            jax.numpy.ones(3).sum()
            import apd_jax
            from apd_jax.programs import compiler_fault
            print(compiler_fault.is_present())
            apd_jax.decompose
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
            | {"JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=True,
        )
        # On some CPUs the library is not used, and the program is right.
        self.assertEqual("Import apd_jax before" in done.stderr, done.stdout.strip() == "True")


if __name__ == "__main__":
    absltest.main()
