"""Scrubbing of residual MLPs: on networks whose answers are known, and against literal loops."""

import handmade
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.studies.resid_mlp import scrubbing, single_features

pytestmark = pytest.mark.slow


def samples_of(target, components, feature_map, distribution, *, num_neurons=2, **rule):
    """Samples of the exact network, small."""
    return scrubbing.scrubbing_samples(
        target,
        components,
        handmade.relu_labels,
        jnp.asarray(feature_map),
        key=jax.random.key(1),
        distribution=distribution,
        objective=handmade.objective(**rule),
        num_neurons=num_neurons,
        batch_size=32,
        num_samples=70,
    )


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
            handmade.relu_labels,
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


if __name__ == "__main__":
    absltest.main()
