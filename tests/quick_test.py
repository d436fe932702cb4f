"""Options of the compiler for programs that run a few times."""

from unittest import mock

import jax
import jax.numpy as jnp
from absl.testing import absltest

from apd_jax.programs import quick


class QuickTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        quick._known.cache_clear()
        self.addCleanup(quick._known.cache_clear)

    def test_small_networks_on_cpus(self):
        small, large = {"w": jnp.ones((64, 64))}, {"w": jnp.ones((64, 64)), "b": jnp.ones(64)}
        self.assertNotEmpty(quick.options(small))
        self.assertEmpty(quick.options(large))
        self.assertEqual(quick.options(jax.eval_shape(lambda: small)), quick.options(small))
        with mock.patch.object(jax, "default_backend", return_value="gpu"):
            self.assertEmpty(quick.options(small))

    def test_programs_are_compiled_with_them(self):
        found = jax.jit(jnp.sin, compiler_options=quick.options(jnp.ones(3)))(jnp.ones(3))
        self.assertAlmostEqual(float(found[0]), 0.841471, places=5)

    def test_parts_of_a_traced_program_have_none(self):
        def made(x):
            return jax.jit(jnp.sin, compiler_options=quick.options(x))(x)

        self.assertEqual(jax.eval_shape(lambda: made(jnp.ones(3))).shape, (3,))

    def test_options_that_xla_does_not_know_are_left_out(self):
        known = {"xla_backend_optimization_level": 0}
        with mock.patch.object(quick, "_OPTIONS", {"xla_no_such_option": 1, **known}):
            self.assertEqual(quick.options(jnp.ones(3)), known)


if __name__ == "__main__":
    absltest.main()
