"""Single features of residual MLPs: sweeps, maps to components, and responses to ablation."""

import handmade
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from apd_jax.studies.resid_mlp import single_features


class SingleFeaturesTest(parameterized.TestCase):
    def test_sweeps_of_exact_components(self):
        sweeps = single_features.feature_sweeps(
            handmade.exact_resid_mlp(),
            handmade.neuron_components(np.eye(4)),
            handmade.relu_labels,
            jnp.arange(4),
            objective=handmade.objective(),
            num_points=5,
        )
        curve = np.array([-1, -0.5, 0, 1, 2])
        for table in (sweeps.target, sweeps.component, sweeps.labels):
            np.testing.assert_allclose(table, np.tile(curve, (4, 1)), atol=1e-6)
        np.testing.assert_allclose(sweeps.one_hot_outputs, 2 * np.eye(4), atol=1e-6)
        np.testing.assert_allclose(sweeps.one_hot_labels, 2 * np.eye(4), atol=1e-6)
        # Without components the ReLU is missing: (0.5² + 1²) over 5 points and 4 outputs.
        np.testing.assert_allclose(sweeps.no_component_mse, 1.25 / 20, atol=1e-6)
        np.testing.assert_allclose(sweeps.component_mse, 0, atol=1e-6)
        np.testing.assert_allclose(sweeps.top1_mse, 0, atol=1e-6)
        self.assertTrue(sweeps.held.all())

    @parameterized.parameters((0.5, False), (0.8, False), (0.85, True))
    def test_held_by_one_component_or_not(self, share, held):
        # A component with a share s of both matrices misses 1 − s² of the ReLU.
        shares = np.concatenate([share * np.eye(3), (1 - share) * np.eye(3)])
        sweeps = single_features.feature_sweeps(
            handmade.exact_resid_mlp(3),
            handmade.neuron_components(shares),
            handmade.relu_labels,
            jnp.arange(3),
            objective=handmade.objective(),
        )
        missing = (1 - share**2) ** 2
        np.testing.assert_allclose(
            sweeps.component_mse, missing * sweeps.no_component_mse, rtol=1e-4
        )
        self.assertEqual(sweeps.held.tolist(), [held] * 3)
        self.assertTrue(sweeps.held_by_two.all())

    def test_thirds_are_not_held_by_two(self):
        sweeps = single_features.feature_sweeps(
            handmade.exact_resid_mlp(2),
            handmade.neuron_components(np.concatenate([np.eye(2) / 3] * 3)),
            handmade.relu_labels,
            jnp.arange(2),
            objective=handmade.objective(),
        )
        missing = (1 - (2 / 3) ** 2) ** 2
        np.testing.assert_allclose(sweeps.top2_mse, missing * sweeps.no_component_mse, rtol=1e-4)
        self.assertFalse(sweeps.held_by_two.any())

    def test_the_map_decides_which_component_is_looked_at(self):
        sweeps = single_features.feature_sweeps(
            handmade.exact_resid_mlp(3),
            handmade.neuron_components(np.eye(3)),
            handmade.relu_labels,
            jnp.array([0, 2, 1]),
            objective=handmade.objective(),
        )
        self.assertEqual(sweeps.held.tolist(), [True, False, False])
        np.testing.assert_allclose(sweeps.top1_mse, 0, atol=1e-6)

    def test_ablation_of_exact_components(self):
        response = single_features.ablation_response(
            handmade.exact_resid_mlp(),
            handmade.neuron_components(np.eye(4)),
            jnp.arange(4),
            key=jax.random.key(0),
            feature=2,
            objective=handmade.objective(),
            num_draws=20,
            batch_size=8,
        )
        np.testing.assert_allclose(response.target, np.eye(4)[2], atol=1e-6)
        np.testing.assert_allclose(response.scrubbed_mean, np.eye(4)[2], atol=1e-6)
        for name in ("scrubbed_std", "antiscrubbed_mean", "antiscrubbed_std"):
            np.testing.assert_allclose(getattr(response, name), 0, atol=1e-6, err_msg=name)

    def test_ablation_of_halves(self):
        # With its component on, the feature has 1 or 1/4 of its ReLU, as the other half is on or
        # off; with it off, 1/4 or 0.
        response = single_features.ablation_response(
            handmade.exact_resid_mlp(),
            handmade.neuron_components(0.5 * np.concatenate([np.eye(4), np.eye(4)])),
            jnp.arange(4),
            key=jax.random.key(0),
            feature=1,
            objective=handmade.objective(),
            num_draws=4000,
        )
        self.assertAlmostEqual(response.scrubbed_mean[1], (1 + 1 / 4) / 2, delta=0.02)
        self.assertAlmostEqual(response.scrubbed_std[1], (1 - 1 / 4) / 2, delta=0.01)
        self.assertAlmostEqual(response.antiscrubbed_mean[1], 1 / 8, delta=0.01)

    def test_unknown_feature_is_refused(self):
        with self.assertRaisesRegex(ValueError, "feature=4.*0..3"):
            single_features.ablation_response(
                handmade.exact_resid_mlp(),
                handmade.neuron_components(np.eye(4)),
                jnp.arange(4),
                key=jax.random.key(0),
                feature=4,
                objective=handmade.objective(),
            )


if __name__ == "__main__":
    absltest.main()
