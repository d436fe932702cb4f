"""Settings of JAX that the caller happens to have: they neither change a run nor break it."""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.errors import UserError
from apd_jax.programs.jax_settings import own_settings

SETTINGS = {
    "other_keys": lambda: jax.default_prng_impl("rbg"),
    "unsafe_keys": lambda: jax.default_prng_impl("unsafe_rbg"),
    "old_threefry": lambda: jax.threefry_partitionable(False),
    "rank_promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype_promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "transfers": lambda: jax.transfer_guard("disallow"),
    "transfers_logged_to_host": lambda: jax.transfer_guard_device_to_host("disallow"),
    "precision": lambda: jax.default_matmul_precision("bfloat16"),
    "legacy_keys": lambda: jax.legacy_prng_key("error"),
    "nans": lambda: jax.debug_nans(True),
    "without_jit": lambda: jax.disable_jit(),
}


def decomposed() -> list[bytes]:
    """The components of a small network with biases, as bytes."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.relu(nn.Dense(4)(x)))

    with own_settings():
        variables = Network().init(jax.random.key(0), jnp.zeros((1, 3)))
    decomposition = apd_jax.decompose(
        apd_jax.Target.from_flax(Network(), variables),
        lambda key, n: jax.random.normal(key, (n, 3)),
        num_components=3,
        topk=1.0,
        steps=4,
        batch_size=8,
        chunk_steps=2,
    )
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(decomposition.components)]


expected = functools.cache(decomposed)


class AmbientTest(parameterized.TestCase):
    @parameterized.parameters(*SETTINGS)
    @pytest.mark.slow
    def test_nothing_changes(self, name):
        plain = expected()
        with SETTINGS[name]():
            self.assertEqual(decomposed(), plain)

    @pytest.mark.slow
    def test_all_at_once(self):
        plain = expected()
        with contextlib.ExitStack() as stack:
            for name in SETTINGS.keys() - {"unsafe_keys", "nans"}:
                stack.enter_context(SETTINGS[name]())
            self.assertEqual(decomposed(), plain)

    def test_shifted_seeds(self):
        jax.config.update("jax_random_seed_offset", 5)
        self.addCleanup(jax.config.update, "jax_random_seed_offset", 0)
        with self.assertRaisesRegex(UserError, "jax_random_seed_offset is 5.*unset JAX_RANDOM"):
            decomposed()

    def test_the_callers_settings_come_back(self):
        with jax.default_prng_impl("rbg"):
            with contextlib.suppress(ZeroDivisionError), own_settings():
                self.assertEqual(str(jax.random.key_impl(jax.random.key(0))), "threefry2x32")
                raise ZeroDivisionError
            self.assertEqual(str(jax.random.key_impl(jax.random.key(0))), "rbg")


if __name__ == "__main__":
    absltest.main()
