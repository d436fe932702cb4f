"""Compiler options of programs that run once."""

import os
from unittest import mock

import jax
import jax.numpy as jnp
from absl.testing import absltest

from apd_jax.runtime.compiling import options_for_one_run


class OptionsTest(absltest.TestCase):
    def options(self, flags="", backend="cpu"):
        with (
            mock.patch.dict(os.environ, {"XLA_FLAGS": flags}),
            mock.patch.object(jax, "default_backend", return_value=backend),
        ):
            return options_for_one_run()

    def test_lower_level_on_cpus_unless_the_user_chose(self):
        self.assertEqual(self.options(), {"xla_backend_optimization_level": 2})
        self.assertIsNone(self.options("--xla_backend_optimization_level=0"))
        self.assertIsNone(self.options(backend="gpu"))
        self.assertIsNone(self.options(backend="tpu"))

    def test_the_compiler_takes_them(self):
        double = jax.jit(lambda x: 2 * x, compiler_options=self.options())
        self.assertEqual(double(jnp.float32(3)), 6)


if __name__ == "__main__":
    absltest.main()
