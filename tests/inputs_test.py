"""Sparse inputs: how many are active, together with which, and with what values.

Bounds on statistics are six standard deviations of what is estimated.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from apd_jax.data.sparse_features import SparseFeatures

SAMPLES = 20_000


def draw(samples=SAMPLES, seed=0, **fields):
    """A batch of 6 features."""
    return np.asarray(SparseFeatures(6, **fields)(jax.random.key(seed), samples))


def within(estimate, expected, deviation, count):
    np.testing.assert_allclose(estimate, expected, atol=6 * deviation / np.sqrt(count))


class IndependentTest(parameterized.TestCase):
    @parameterized.product(
        probability=(0.05, 0.7, 1.0), value_range=((0.0, 1.0), (-1.0, 1.0), (2.0, 5.0))
    )
    def test_statistics(self, probability, value_range):
        x = draw(probability=probability, value_range=value_range)
        self.assertEqual(x.dtype, np.float32)
        active = x != 0
        deviation = np.sqrt(probability * (1 - probability))
        within(active.mean(axis=0), probability, deviation, SAMPLES)
        low, high = value_range
        values = x[active]
        self.assertGreaterEqual(values.min(), low)
        self.assertLessEqual(values.max(), high)
        width = (high - low) / np.sqrt(12)
        within(values.mean(), (low + high) / 2, width, values.size)
        fractions = np.sort((values - low) / (high - low))
        ranks = (np.arange(values.size) + 0.5) / values.size
        self.assertLess(np.abs(fractions - ranks).max(), 3 / np.sqrt(values.size))

    def test_features_and_examples_are_independent(self):
        active = draw(probability=0.3) != 0
        correlation = np.corrcoef(active.T) - np.eye(6)
        within(correlation, 0, 1, SAMPLES)
        within(np.corrcoef(active[1:, 0], active[:-1, 0])[0, 1], 0, 1, SAMPLES)

    def test_almost_never(self):
        self.assertFalse(draw(100, probability=1e-12).any())

    def test_keys(self):
        np.testing.assert_array_equal(draw(5, probability=1.0), draw(5, probability=1.0))
        self.assertFalse(np.any(draw(5, probability=1.0) == draw(5, seed=1, probability=1.0)))


class ExactlyTest(parameterized.TestCase):
    @parameterized.parameters(1, 4, 6)
    def test_number_active(self, number):
        x = draw(
            2000,
            probability=0.5,
            input_mode="exactly_n",
            num_active=number,
            value_range=(-1.0, 1.0),
        )
        np.testing.assert_array_equal((x != 0).sum(axis=1), np.full(2000, number))
        share = number / 6
        within((x != 0).mean(axis=0), share, np.sqrt(share * (1 - share)), 2000)
        within(x[x != 0].mean(), 0, 1 / np.sqrt(3), 2000 * number)


class SyncedTest(absltest.TestCase):
    def test_groups_are_active_together_with_values_of_their_own(self):
        x = draw(probability=0.25, value_range=(-1.0, 1.0), synced=((0, 3, 4), (5, 2)))
        active = x != 0
        for first, other in ((0, 3), (0, 4), (5, 2)):
            np.testing.assert_array_equal(active[:, first], active[:, other])
            both = x[active[:, first]][:, [first, other]]
            within(np.corrcoef(both.T)[0, 1], 0, 1, len(both))
        within(active.mean(axis=0), 0.25, np.sqrt(0.1875), SAMPLES)
        single = active[:, [0, 5, 1]].T
        within(np.corrcoef(single) - np.eye(3), 0, 1, SAMPLES)
        within(x[active].mean(), 0, 1 / np.sqrt(3), active.sum())
        self.assertLess(np.abs(x).max(), 1.0)


class BadInputTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"num_features": 0}, "num_features must be at least 1, got 0"),
        ({"probability": -0.1}, r"probability must be in \(0, 1\], got -0.1"),
        ({"probability": 0.0}, r"probability must be in \(0, 1\], got 0.0"),
        ({"probability": 1.5}, r"probability must be in \(0, 1\], got 1.5"),
        ({"probability": float("nan")}, "probability must be a finite number, got nan"),
        ({"input_mode": "some"}, "input_mode must be one of .+ got 'some'"),
        ({"input_mode": "exactly_n", "num_active": 7}, r"num_active must be in \[1, 6\], got 7"),
        ({"input_mode": "exactly_n", "num_active": 0}, r"num_active must be in \[1, 6\], got 0"),
        ({"value_range": (1.0, 1.0)}, r"low < high; got \(1.0, 1.0\)"),
        ({"synced": ((0, 6),)}, r"synced features \[6\] are out of range; there are 6"),
        ({"synced": ((-1, 2),)}, r"synced features \[-1\] are out of range"),
        ({"synced": ((0, 1), (1, 2))}, r"overlap in features \[1\]"),
        ({"synced": ((3, 3),)}, r"overlap in features \[3\]"),
        ({"synced": ((0.5, 1),)}, r"indices of features, got \(\(0.5, 1\),\)"),
        ({"synced": ((0, 1), ())}, "synced groups must not be empty"),
        ({"synced": ((0, 1),), "input_mode": "exactly_n"}, "synced groups need input_mode .ind"),
    )
    def test_is_refused(self, fields, message):
        with self.assertRaisesRegex(ValueError, message):
            SparseFeatures(**({"num_features": 6, "probability": 0.5} | fields))

    def test_same_under_jit(self):
        features = SparseFeatures(6, 0.5)
        key = jax.random.key(0)
        np.testing.assert_array_equal(jax.jit(features, static_argnums=1)(key, 8), features(key, 8))
        self.assertEqual(hash(features), hash(SparseFeatures(6, 0.5)))
        self.assertEqual(jnp.float32, features(key, 1).dtype)


class RandomWordsTest(parameterized.TestCase):
    @parameterized.parameters("threefry2x32", "rbg")
    def test_share_and_mean_by_every_kind_of_key(self, impl):
        distribution = SparseFeatures(7, 0.3, (-1.0, 3.0))
        x = np.asarray(distribution(jax.random.key(0, impl=impl), 10_001))
        active = x[x != 0]
        self.assertAlmostEqual(active.size / x.size, 0.3, delta=0.01)
        self.assertAlmostEqual(float(active.mean()), 1.0, delta=0.04)
        correlation = np.corrcoef((x != 0).T) - np.eye(7)
        self.assertLess(np.abs(correlation).max(), 0.05)


if __name__ == "__main__":
    absltest.main()
