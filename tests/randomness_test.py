"""The random streams of a run: their numbers stay, and no two are the same."""

from unittest import mock

import jax
import numpy as np
from absl.testing import absltest

from apd_jax import randomness


def bits(key):
    return jax.random.key_data(key).tolist()


class RandomnessTest(absltest.TestCase):
    def test_numbers(self):
        """Other numbers would be other results."""
        key = jax.random.key(7, impl="threefry2x32")
        self.assertEqual(bits(randomness.root(7)), bits(key))
        self.assertEqual(bits(randomness.root(np.uint32(7))), bits(key))
        names = ("target parameters", "target loss", "components", "evaluation", "probes")
        for place, name in enumerate(names):
            expected = jax.random.fold_in(key, 2**31 + place)
            self.assertEqual(bits(randomness.stream(7, name)), bits(expected))
        third = randomness.step_key(key, 3)
        self.assertEqual(bits(third), bits(jax.random.fold_in(key, 3)))
        for place, name in enumerate(("target batch", "batch", "attribution")):
            expected = jax.random.fold_in(third, place)
            self.assertEqual(bits(randomness.stream_of_step(third, name)), bits(expected))

    def test_all_differ(self):
        for table in (randomness._STREAMS, randomness._STREAMS_OF_A_STEP):
            self.assertLen(set(table.values()), len(table))
        self.assertGreaterEqual(min(randomness._STREAMS.values()), 2**31)

    def test_bits_do_not_follow_the_default_of_jax(self):
        before = jax.random.bits(randomness.root(0)).tolist()
        with jax.default_prng_impl("rbg"):
            self.assertEqual(jax.random.bits(randomness.root(0)).tolist(), before)

    def test_permutation_is_that_of_jax(self):
        for count in (1, 2, 5, 1000, 100_000):
            found = randomness.permutation(randomness.root(count), count)
            self.assertEqual(found.dtype, np.int32)
            expected = jax.random.permutation(randomness.root(count), count)
            np.testing.assert_array_equal(found, expected)

    def test_rows_with_equal_numbers_keep_their_order(self):
        drawn, bits = [], jax.random.bits

        def few(*arguments):
            drawn.append(np.asarray(bits(*arguments)) >> 29)
            return drawn[-1]

        with mock.patch.object(jax.random, "bits", few):
            found = randomness.permutation(randomness.root(0), 100)
        expected = np.arange(100)
        for numbers in drawn:
            expected = expected[np.argsort(numbers, kind="stable")]
        np.testing.assert_array_equal(found, expected)


if __name__ == "__main__":
    absltest.main()
