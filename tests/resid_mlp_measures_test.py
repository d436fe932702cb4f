"""Measures of residual MLPs on networks whose answers are known, and against literal loops."""

import math
from unittest import mock

import handmade
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.studies import reconstruction
from apd_jax.studies.resid_mlp import contributions, measures
from apd_jax.studies.resid_mlp.network import ResidualMLPTask

pytestmark = pytest.mark.slow

KEYS = {
    "faithfulness_mse": float,
    "topk_mse": float,
    "scrubbed_mse": float,
    "antiscrubbed_mse": float,
    "random_mse": float,
    "monosemantic_mse": float,
    "zero_mse": float,
    "topk_mse_standard_error": float,
    "scrubbed_mse_standard_error": float,
    "antiscrubbed_mse_standard_error": float,
    "random_mse_standard_error": float,
    "monosemantic_mse_standard_error": float,
    "zero_mse_standard_error": float,
    "contribution_cosine": float,
    "features_represented": int,
    "dead": int,
    "monosemantic": int,
    "duosemantic": int,
    "polysemantic": int,
    "single_component_features": int,
    "two_component_features": int,
    "solved": bool,
}


@mock.patch.object(measures, "_LABEL_SAMPLES", 64)
def evaluate(target, components, *, inputs=None, key=None):
    """Measures of components of a residual MLP; its inputs are sparse unless given."""
    inputs = inputs or SparseFeatures(len(target.params["W_E"]), 0.01, (-1.0, 1.0))
    return measures.evaluate_resid_mlp(
        ResidualMLPTask(inputs=inputs),
        handmade.decomposition(target, components),
        key=jax.random.key(0) if key is None else key,
        samples=64,
    )


class ContributionsTest(parameterized.TestCase):
    @parameterized.parameters(((5,),), ((3, 4),), ((2, 3, 4),))
    def test_equals_literal_loops(self, neurons):
        target, components = handmade.random_resid_mlp(
            np.random.default_rng(0), features=6, width=8, neurons=neurons, num_components=3, rank=2
        )
        result = contributions.neuron_contributions(target, components)
        embed, unembed = np.asarray(target.params["W_E"]), np.asarray(target.params["W_U"])
        column = 0
        for layer, count in enumerate(neurons):
            names = f"layers_{layer}/mlp_in/kernel", f"layers_{layer}/mlp_out/kernel"
            choices = [(result.target, [np.asarray(target.weights[n]) for n in names])]
            pieces = [np.asarray(components[n].matrices()) for n in names]
            choices += [(result.components[c], [p[c] for p in pieces]) for c in range(3)]
            for table, (w_in, w_out) in choices:
                for feature in range(6):
                    for neuron in range(count):
                        read = sum(embed[feature, d] * w_in[d, neuron] for d in range(8))
                        write = sum(w_out[neuron, d] * unembed[d, feature] for d in range(8))
                        np.testing.assert_allclose(
                            table[feature, column + neuron], read * write, rtol=2e-4, atol=1e-4
                        )
            column += count
        self.assertEqual(result.target.shape, (6, sum(neurons)))
        np.testing.assert_array_equal(result.layer, np.repeat(range(len(neurons)), neurons))

    def test_one_neuron_per_component(self):
        order = [2, 0, 3, 1]
        shares = np.eye(4)[order]
        result = contributions.neuron_contributions(
            handmade.exact_resid_mlp(), handmade.neuron_components(shares)
        )
        np.testing.assert_array_equal(result.target, np.eye(4))
        np.testing.assert_array_equal(result.best, np.eye(4))
        np.testing.assert_array_equal(result.best_component, np.argsort(order))
        np.testing.assert_array_equal(result.represents, shares.astype(bool))
        self.assertEqual(contributions.contribution_cosine(result), 1.0)

    def test_semantic_counts(self):
        represents = np.zeros((7, 6), bool)
        represents[1, 0] = represents[2, 0] = True  # the same feature twice
        represents[3, [1, 2]] = True
        represents[4, [1, 2, 3]] = True
        represents[5, :5] = True
        self.assertEqual(
            contributions.semantic_counts(represents),
            {
                "dead": 2,
                "monosemantic": 2,
                "duosemantic": 1,
                "polysemantic": 2,
                "features_represented": 5,
            },
        )

    @parameterized.parameters((0.19, False), (0.21, True))
    def test_represents_from_the_cutoff_on(self, share, expected):
        # A share s of a neuron's weights in both matrices contributes s², and 0.2² = 0.04.
        shares = np.diag([share, 1.0])
        result = contributions.neuron_contributions(
            handmade.exact_resid_mlp(2), handmade.neuron_components(shares)
        )
        self.assertEqual(bool(result.represents[0, 0]), expected)

    def test_a_negative_contribution_represents_nothing(self):
        matrices = np.eye(2)[None]
        components = handmade.full_rank(
            {"layers_0/mlp_in/kernel": matrices, "layers_0/mlp_out/kernel": -matrices}
        )
        result = contributions.neuron_contributions(handmade.exact_resid_mlp(2), components)
        self.assertFalse(result.represents.any())
        self.assertEqual(contributions.contribution_cosine(result), -1.0)

    def test_components_that_are_all_zero(self):
        result = contributions.neuron_contributions(
            handmade.exact_resid_mlp(), handmade.neuron_components(np.zeros((3, 4)))
        )
        self.assertEqual(contributions.contribution_cosine(result), 0.0)
        self.assertEqual(contributions.semantic_counts(result.represents)["dead"], 3)

    def test_other_networks_are_refused(self):
        target = handmade.tms(np.eye(3))
        with self.assertRaisesRegex(ValueError, "linear1.*residual MLP"):
            contributions.neuron_contributions(
                target, handmade.full_rank({"linear1": np.eye(3)[None]})
            )


class LabelErrorsTest(parameterized.TestCase):
    def errors(self, shares, distribution, topk=1.0, **overrides):
        settings = {"max_active": 5, "num_exact": 2, "passthrough": True}
        return reconstruction.label_errors(
            handmade.exact_resid_mlp(),
            handmade.neuron_components(shares),
            handmade.relu_labels,
            key=jax.random.key(0),
            distribution=distribution,
            batch_size=500,
            num_samples=4000,
            objective=handmade.objective(topk),
            **(settings | overrides),
        )

    @parameterized.parameters((True, 1), (False, 4))
    def test_by_number_of_active_features(self, passthrough, cost):
        # A feature that the baseline does not compute costs 1² or, passed over as 0, 2².
        errors = self.errors(np.eye(4), handmade.ones(4, 1), passthrough=passthrough)
        np.testing.assert_array_equal(errors.num_active, range(5))
        np.testing.assert_allclose(errors.target, 0, atol=1e-6)
        np.testing.assert_allclose(errors.topk, 0, atol=1e-6)
        expected = cost * np.array([1, 1, 2, 3, 4]) * 2 / 16
        np.testing.assert_allclose(errors.baseline, expected, atol=0.02 * cost)

    def test_empty_rows_are_left_out_of_the_training_distribution(self):
        distribution = SparseFeatures(4, 0.5, (1.0, 1.0 + 1e-6))
        errors = self.errors(np.eye(4), distribution, topk=4.0)
        self.assertAlmostEqual(errors.baseline[0], 0.25 / (1 - 0.5**4), delta=0.008)

    def test_more_active_features_than_components(self):
        merged = np.array([[1, 1, 0, 0], [0, 0, 1, 1]])
        errors = self.errors(merged, handmade.ones(4, 1), max_active=3)
        np.testing.assert_array_equal(errors.num_active, range(4))
        np.testing.assert_allclose(errors.topk, 0, atol=1e-6)

    def test_baseline_outputs(self):
        x, labels = jnp.full((2, 3), 5.0), jnp.full((2, 3), 7.0)
        for passthrough, rest in ((True, 5), (False, 0)):
            outputs = reconstruction.baseline_outputs(
                x, labels, num_exact=1, passthrough=passthrough
            )
            np.testing.assert_array_equal(outputs, [[7, rest, rest]] * 2)
        outputs = reconstruction.baseline_outputs(x, labels, num_exact=9, passthrough=True)
        np.testing.assert_array_equal(outputs, labels)

    @parameterized.parameters((1, 8, 1), (8, 8, 1), (9, 8, 2))
    def test_num_batches(self, samples, batch_size, expected):
        self.assertEqual(reconstruction.num_batches(samples, batch_size), expected)

    @parameterized.parameters((0, 8), (8, 0))
    def test_counts_below_one_are_refused(self, samples, batch_size):
        with self.assertRaisesRegex(ValueError, "at least 1"):
            reconstruction.num_batches(samples, batch_size)

    def test_faithfulness_is_the_worst_site(self):
        target = handmade.exact_resid_mlp(2)
        components = handmade.full_rank(
            {
                "layers_0/mlp_in/kernel": np.eye(2)[None],
                "layers_0/mlp_out/kernel": np.array([[[1.0, 0.2], [0, 1]]]),
            }
        )
        self.assertAlmostEqual(
            reconstruction.faithfulness_mse(target, components), 0.2**2 / 4, places=6
        )


class EvaluateTest(parameterized.TestCase):
    def test_exact_components_solve_it(self):
        shares = np.concatenate([np.zeros((1, 4)), np.eye(4)[[3, 1, 0, 2]]])
        numbers, arrays = evaluate(
            handmade.exact_resid_mlp(),
            handmade.neuron_components(shares),
            inputs=handmade.ones(4, 1),
        )
        self.assertEqual({key: type(value) for key, value in numbers.items()}, KEYS)
        expected = {
            "contribution_cosine": 1.0,
            "features_represented": 4,
            "dead": 1,
            "monosemantic": 4,
            "duosemantic": 0,
            "polysemantic": 0,
            "single_component_features": 4,
            "two_component_features": 4,
            "solved": True,
        }
        self.assertEqual({key: numbers[key] for key in expected}, expected)
        for key in ("faithfulness_mse", "topk_mse", "scrubbed_mse", "monosemantic_mse"):
            self.assertAlmostEqual(numbers[key], 0, places=6, msg=key)
        self.assertAlmostEqual(numbers["antiscrubbed_mse"], 1 / 4, places=5)
        self.assertEqual(arrays.ablation.feature, 3)
        np.testing.assert_array_equal(arrays.feature_map, [3, 2, 4, 1])
        np.testing.assert_array_equal(arrays.label_errors.num_active, range(5))

    def test_fewer_components_than_features(self):
        shares = np.array([[1, 1, 0, 0], [0, 0, 1, 1]])
        numbers, arrays = evaluate(handmade.exact_resid_mlp(), handmade.neuron_components(shares))
        self.assertAlmostEqual(
            numbers["antiscrubbed_mse_standard_error"],
            np.std(arrays.samples.antiscrubbed, dtype=np.float64) / math.sqrt(64),
        )
        self.assertGreater(numbers["antiscrubbed_mse_standard_error"], 0)
        self.assertEqual(numbers["duosemantic"], 2)
        self.assertEqual(numbers["features_represented"], 4)
        # Each feature is held by one component, but not by one of its own.
        self.assertEqual(numbers["single_component_features"], 4)
        self.assertFalse(numbers["solved"])

    def test_random_components_of_three_layers(self):
        target, components = handmade.random_resid_mlp(
            np.random.default_rng(0),
            features=4,
            width=6,
            neurons=(2, 3, 2),
            num_components=5,
            rank=2,
        )
        numbers, arrays = evaluate(target, components)
        again, _ = evaluate(target, components)
        self.assertEqual(numbers, again)
        other, _ = evaluate(target, components, key=jax.random.key(1))
        self.assertNotEqual(numbers["scrubbed_mse"], other["scrubbed_mse"])
        self.assertFalse(numbers["solved"])
        self.assertTrue(all(np.isfinite(value) for value in numbers.values()))
        self.assertEqual(arrays.contributions.components.shape, (5, 4, 7))
        for leaf in jax.tree.leaves(arrays):
            self.assertNotIsInstance(leaf, jax.Array)


if __name__ == "__main__":
    absltest.main()
