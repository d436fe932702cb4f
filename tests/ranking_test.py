"""Which examples a component is most important for, and what changes there without it."""

import evidence_cases as cases
import jax.numpy as jnp
import networks
import numpy as np
from absl.testing import absltest

from apd_jax.evaluation import ranking, without


class SharesTest(absltest.TestCase):
    def test_an_example_of_large_gradients_heads_only_its_own_component(self):
        scores = np.array([[100.0, 90.0], [2.0, 0.1], [0.1, 2.0], [1.0, 1.0]])
        share = ranking.shares(scores)
        self.assertEqual(ranking.rows(share[:, 0], 4)[0], 0)
        self.assertEqual(np.argsort(-scores[:, 1])[0], 0)
        self.assertNotEqual(ranking.rows(share[:, 1], 4)[0], 0)

    def test_an_example_on_which_nothing_happens_is_not_the_first(self):
        share = ranking.shares(np.array([[1e-6, 0.0], [1.0, 0.5], [0.5, 1.0]]))
        self.assertEqual(ranking.rows(share[:, 0], 1).tolist(), [1])

    def test_zeros_and_what_is_not_finite(self):
        share = ranking.shares(np.array([[0.0, 0.0], [np.nan, 1.0], [np.inf, 2.0]]))
        self.assertTrue(np.isfinite(share).all())
        np.testing.assert_array_equal(share[:, 0], 0)
        np.testing.assert_array_equal(ranking.shares(np.zeros((2, 3))), 0)


class WithoutTest(absltest.TestCase):
    def test_examples(self):
        x = networks.normal(1, 7, 3)
        target = networks.mlp()
        components = networks.components(target, 4, 2)
        found = cases.decomposition(target, components, x, batch_size=3)
        taken, on = np.array([0, 3, 3, 1]), np.array([6, 0, 2, 2])
        changes = without.changes(found, x, taken, on)
        for value, component, example in zip(changes, taken, on, strict=True):
            one = x[example : example + 1]
            mask = np.ones((1, 4))
            whole = np.asarray(networks.literal_masked(target, components, one, mask))
            mask[0, component] = 0
            rest = np.asarray(networks.literal_masked(target, components, one, mask))
            expected = np.sum((rest - whole) ** 2) / np.sum(whole**2)
            np.testing.assert_allclose(value, expected, rtol=1e-4)

    def test_positions(self):
        found, x = cases.tokens()
        (change,) = without.changes(found, x, np.array([2]), np.array([3]))
        one = jnp.asarray(x[3:4])
        mask = np.ones((1, x.shape[1], 4))
        whole = cases.literal_tokens(found.components, one, mask)
        mask[..., 2] = 0
        rest = cases.literal_tokens(found.components, one, mask)
        np.testing.assert_allclose(change, cases.divergence(rest, whole).mean(), rtol=2e-4)


if __name__ == "__main__":
    absltest.main()
