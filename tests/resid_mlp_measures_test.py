"""Measures of residual MLPs on networks whose answers are known, and against literal loops."""

import functools
import math

import handmade
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from apd_jax.inputs import SparseFeatures
from apd_jax.studies import reconstruction
from apd_jax.studies.resid_mlp import contributions, measures, scrubbing, single_features

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
evaluate = functools.partial(
    measures.evaluate_resid_mlp,
    key=jax.random.key(0),
    objective=handmade.objective(),
    batch_size=32,
    num_samples=64,
    num_label_samples=64,
)


def samples_of(target, components, feature_map, distribution, *, num_neurons=2, **rule):
    """Samples of the exact network, small."""
    return scrubbing.scrubbing_samples(
        target,
        components,
        measures.relu_labels,
        jnp.asarray(feature_map),
        key=jax.random.key(1),
        distribution=distribution,
        objective=handmade.objective(**rule),
        num_neurons=num_neurons,
        batch_size=32,
        num_samples=70,
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
            evaluate(target, handmade.full_rank({"linear1": np.eye(3)[None]}))


class ScrubbingTest(parameterized.TestCase):
    def test_feature_map_follows_the_components(self):
        order = [2, 0, 3, 1]
        components = handmade.neuron_components(np.eye(4)[order])
        mapped = scrubbing.feature_component_map(
            handmade.exact_resid_mlp(),
            components,
            num_features=4,
            objective=handmade.objective(),
        )
        np.testing.assert_array_equal(mapped, np.argsort(order))

    def test_masks_equal_a_literal_loop(self):
        rng = np.random.default_rng(0)
        active = rng.random((64, 10)) < 0.2
        feature_map = rng.integers(0, 6, 10)  # features share components, some have none
        half, scrubbed, antiscrubbed = map(
            np.asarray,
            scrubbing.scrubbing_masks(
                jax.random.key(0), jnp.asarray(active), jnp.asarray(feature_map), jnp.arange(8) == 7
            ),
        )
        for mask in (half, scrubbed, antiscrubbed):
            self.assertTrue(mask[:, 7].all())
        for row in range(64):
            needed = {feature_map[f] for f in range(10) if active[row, f]}
            for c in range(8):
                if c in needed:
                    self.assertTrue(scrubbed[row, c])
                    self.assertFalse(antiscrubbed[row, c])
                else:
                    self.assertEqual(scrubbed[row, c], half[row, c])
                    self.assertEqual(antiscrubbed[row, c], half[row, c])

    def test_half_of_the_components_are_on(self):
        masks = scrubbing.scrubbing_masks(
            jax.random.key(0), jnp.ones((500, 4), bool), jnp.arange(4), jnp.zeros(40, bool)
        )
        self.assertAlmostEqual(float(masks.random.mean()), 0.5, delta=0.02)

    def test_all_features_on(self):
        target = handmade.exact_resid_mlp()
        components = handmade.neuron_components(np.eye(4))
        samples = samples_of(target, components, range(4), handmade.ones(4, 4))
        self.assertLen(samples.topk, 96)  # whole batches of 32
        # Every output is 2; each neuron that is off costs 1 in one of four outputs.
        expected = {
            "num_active": 4,
            "scrubbed": 0,
            "antiscrubbed": 1,
            "monosemantic": 2 / 4,
            "label_target": 0,
            "label_top1": 3 / 4,
        }
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(samples, name), value, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(samples.topk, samples.label_topk, atol=1e-5)
        # Batch top-k may spread its pairs over the rows as it likes: 1 per row on average.
        np.testing.assert_allclose(samples.topk, 1 - samples.components_active / 4, atol=1e-5)
        np.testing.assert_allclose(samples.components_active.reshape(3, 32).mean(axis=1), 1)

    def test_one_feature_on_and_a_dead_component(self):
        target = handmade.exact_resid_mlp()
        shares = np.concatenate([np.zeros((1, 4)), np.eye(4)])
        samples = samples_of(
            target, handmade.neuron_components(shares), range(1, 5), handmade.ones(4, 1)
        )
        np.testing.assert_allclose(samples.scrubbed, 0, atol=1e-6)
        np.testing.assert_allclose(samples.topk, 0, atol=1e-6)
        np.testing.assert_allclose(samples.antiscrubbed, 1 / 4, atol=1e-5)
        np.testing.assert_allclose(samples.zero, 2**2 / 4, atol=1e-5)
        self.assertEqual({round(float(v), 4) for v in samples.random}, {0.0, 0.25})
        np.testing.assert_allclose(
            samples.monosemantic, np.where(samples.feature < 2, 0, 1 / 4), atol=1e-5
        )
        averages = scrubbing.per_feature(samples, num_features=4)
        self.assertEqual(averages.num_samples.sum(), 96)
        np.testing.assert_array_equal(averages.components_active, np.ones(4))

    def test_duplicated_components_are_each_worth_a_quarter(self):
        # Half of a neuron's weights in both matrices: 1/4 alone, 1 together with the other half.
        shares = 0.5 * np.concatenate([np.eye(4), np.eye(4)])
        samples = samples_of(
            handmade.exact_resid_mlp(),
            handmade.neuron_components(shares),
            range(4),
            handmade.ones(4, 1),
            topk=2.0,
        )
        np.testing.assert_allclose(samples.topk, 0, atol=1e-6)
        np.testing.assert_allclose(samples.label_top1, 0.75**2 / 4, atol=1e-5)
        values = {0.0, round(0.75**2 / 4, 4)}
        self.assertEqual({round(float(v), 4) for v in samples.scrubbed}, values)

    @parameterized.parameters(
        ({"topk": 2.0, "selection": "sample"}, 2),
        ({"topk": None, "selection": "exact"}, 1),
        ({"topk": None}, 4),
        ({"distil": True}, 2),
    )
    def test_the_rule_of_the_training_selects(self, rule, active):
        target, components = handmade.exact_resid_mlp(), handmade.neuron_components(np.eye(4))
        samples = samples_of(target, components, range(4), handmade.ones(4, 1), **rule)
        self.assertAlmostEqual(samples.components_active.mean(), active)
        if not rule.get("distil"):
            np.testing.assert_allclose(samples.topk, 0, atol=1e-6)

    def test_a_component_that_is_always_active_is_not_scrubbed(self):
        target, components = handmade.exact_resid_mlp(), handmade.neuron_components(np.eye(4))
        mapped = scrubbing.feature_component_map(
            target, components, num_features=4, objective=handmade.objective(distil=True)
        )
        np.testing.assert_array_equal(mapped[:3], [0, 1, 2])
        self.assertLess(mapped[3], 3)
        samples = samples_of(target, components, mapped, handmade.ones(4, 1), distil=True)
        expected = np.where(samples.feature == 3, 0, 1 / 4)
        np.testing.assert_allclose(samples.antiscrubbed, expected, atol=1e-5)
        np.testing.assert_allclose(samples.label_top1, 0, atol=1e-6)
        sweeps = single_features.feature_sweeps(
            target,
            components,
            measures.relu_labels,
            mapped,
            objective=handmade.objective(distil=True),
        )
        np.testing.assert_allclose(sweeps.no_component_mse[3], 0, atol=1e-6)
        self.assertTrue(np.all(sweeps.no_component_mse[:3] > 0.01))

    def test_per_feature_equals_a_literal_loop(self):
        rng = np.random.default_rng(0)
        size = 400
        samples = scrubbing.ScrubbingSamples(
            num_active=rng.integers(0, 3, size),
            feature=rng.integers(0, 5, size),
            components_active=rng.integers(0, 4, size),
            **{name: rng.random(size) for name in scrubbing.ScrubbingSamples._fields[3:]},
        )
        averages = scrubbing.per_feature(samples, num_features=6)
        for feature in range(5):
            rows = [
                i
                for i in range(size)
                if samples.num_active[i] == 1 and samples.feature[i] == feature
            ]
            self.assertEqual(averages.num_samples[feature], len(rows))
            for name in ("label_target", "label_topk", "label_top1", "components_active"):
                expected = sum(getattr(samples, name)[i] for i in rows) / len(rows)
                self.assertAlmostEqual(getattr(averages, name)[feature], expected)
        self.assertEqual(averages.num_samples[5], 0)
        self.assertTrue(np.isnan(averages.label_topk[5]))
        self.assertEqual(averages.order[-1], 5)
        self.assertTrue(np.all(np.diff(averages.label_target[averages.order[:-1]]) >= 0))

    def test_samples_are_drawn_from_the_distribution(self):
        samples = samples_of(
            handmade.exact_resid_mlp(),
            handmade.neuron_components(np.eye(4)),
            range(4),
            SparseFeatures(4, 0.25, (-1.0, 1.0)),
        )
        self.assertGreater(len(set(samples.num_active.tolist())), 2)
        self.assertTrue(np.all(samples.antiscrubbed[samples.num_active == 0] == 0))

    def test_seeds_share_one_compilation(self):
        before = scrubbing._sample_batch._cache_size()
        for seed in range(3):
            target, components = handmade.random_resid_mlp(
                np.random.default_rng(seed),
                features=4,
                width=5,
                neurons=(3,),
                num_components=4,
                rank=2,
            )
            samples_of(target, components, range(4), SparseFeatures(4, 0.25, (-1.0, 1.0)))
        self.assertEqual(scrubbing._sample_batch._cache_size() - before, 1)


class SingleFeaturesTest(parameterized.TestCase):
    def test_sweeps_of_exact_components(self):
        sweeps = single_features.feature_sweeps(
            handmade.exact_resid_mlp(),
            handmade.neuron_components(np.eye(4)),
            measures.relu_labels,
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
            measures.relu_labels,
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
            measures.relu_labels,
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
            measures.relu_labels,
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
            num_features=4,
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
            num_features=4,
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
                num_features=4,
                objective=handmade.objective(),
            )


class LabelErrorsTest(parameterized.TestCase):
    def errors(self, shares, distribution, topk=1.0, **overrides):
        settings = {"max_active": 5, "num_exact": 2, "passthrough": True}
        return reconstruction.label_errors(
            handmade.exact_resid_mlp(),
            handmade.neuron_components(shares),
            measures.relu_labels,
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
            distribution=handmade.ones(4, 1),
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

    @pytest.mark.slow
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

    def test_another_number_of_features_is_refused(self):
        with self.assertRaisesRegex(ValueError, "5 features, the network 4"):
            evaluate(
                handmade.exact_resid_mlp(),
                handmade.neuron_components(np.eye(4)),
                distribution=handmade.ones(5, 1),
            )


if __name__ == "__main__":
    absltest.main()
