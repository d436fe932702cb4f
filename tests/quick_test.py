"""Options of the compiler for programs that run a few times."""

import os
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

import apd_jax
from apd_jax.programs import quick


class QuickTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.given("")  # those of the tests have levels
        self.addCleanup(quick._known.cache_clear)

    def given(self, flags):
        """Let the environment have these XLA_FLAGS, for Python alone: XLA itself keeps its own."""
        self.enterContext(mock.patch.object(os, "environ", os.environ | {"XLA_FLAGS": flags}))
        quick._known.cache_clear()

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

    def test_programs_on_much_data_have_none(self):
        small, few, many = jnp.ones(3), {"x": jnp.ones((128, 1024))}, jnp.ones((129, 1024))
        self.assertEqual(quick.options(small, few), quick.options(small))
        self.assertEqual(quick.options(small, [few, 3.0]), {})
        self.assertEmpty(quick.options(small, many))

    def test_programs_of_a_network_are_differentiated(self):
        target = apd_jax.Target(lambda w, x: x @ w, jnp.ones((3, 2))).at(jnp.ones((1, 3)))
        components = apd_jax.init_components(jax.random.key(0), target, num_components=2, rank=1)
        x, mask = jnp.ones((1, 3)), jnp.ones((1, 2))

        def output(x):
            return apd_jax.masked_apply(target, components, x, mask).sum()

        summed = sum(factors.sum() for factors in components.values())
        np.testing.assert_allclose(jax.grad(output)(x)[0], summed.sum(axis=1), rtol=1e-5)
        (outputs,) = jax.vmap(lambda x: apd_jax.masked_apply(target, components, x, mask))(x[None])
        np.testing.assert_allclose(outputs, x @ summed, rtol=1e-5)

    def test_flags_of_the_caller_hold(self):
        names = quick.options(jnp.ones(3)).keys()
        flags = " ".join(f"--{name}=0" for name in [*names, "xla_gpu_autotune_level"])
        self.given(flags)
        self.assertEmpty(quick.options(jnp.ones(3)))
        self.given("--xla_backend_optimization_level=1")
        rest = names - {"xla_backend_optimization_level"}
        self.assertEqual(quick.options(jnp.ones(3)).keys(), rest)

    def test_options_that_xla_does_not_know_are_left_out(self):
        known = {"xla_backend_optimization_level": 0}
        with mock.patch.object(quick, "_OPTIONS", {"xla_no_such_option": 1, **known}):
            self.assertEqual(quick.options(jnp.ones(3)), known)


if __name__ == "__main__":
    absltest.main()
