"""Measures of toy models of superposition on hand-made components, and against literal loops."""

import handmade
import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.studies.tms import measures
from apd_jax.studies.tms.network import LINEAR, TMSTask

KEYS = {
    "faithfulness_mse": float,
    "topk_mse": float,
    "mmcs": float,
    "ml2r": float,
    "features_recovered": int,
    "solved": bool,
}


def evaluate(target, components, *, inputs=None, batch_size=32, samples=64):
    """Measures of components of a TMS; its inputs are sparse unless given."""
    task = TMSTask(inputs=inputs or SparseFeatures(len(target.weights[LINEAR]), 0.05))
    decomposition = handmade.decomposition(target, components, batch_size)
    return measures.evaluate_tms(task, decomposition, key=jax.random.key(0), samples=samples)


def scores_of(weight, shares):
    """Numbers, best components and recovered features of components made of rows."""
    components = handmade.row_components(weight, np.asarray(shares))
    return measures.superposition_scores(*measures.row_similarity(weight, components))


class ScoresTest(parameterized.TestCase):
    weight = np.random.default_rng(0).normal(size=(5, 2))

    def test_one_component_a_feature(self):
        order = [4, 2, 0, 1, 3]
        numbers, best, recovered = scores_of(self.weight, np.eye(5)[order])
        self.assertAlmostEqual(numbers["mmcs"], 1)
        self.assertAlmostEqual(numbers["ml2r"], 1)
        self.assertEqual(numbers["features_recovered"], 5)
        np.testing.assert_array_equal(best, np.argsort(order))
        self.assertTrue(recovered.all())

    @parameterized.parameters((0.79, 0), (0.81, 5), (1.19, 5), (1.21, 0))
    def test_shrunk_and_stretched(self, scale, count):
        numbers, _, _ = scores_of(self.weight, scale * np.eye(5))
        self.assertAlmostEqual(numbers["mmcs"], 1)
        self.assertAlmostEqual(numbers["ml2r"], scale)
        self.assertEqual(numbers["features_recovered"], count)

    def test_merged_features_count_once(self):
        shares = np.eye(5)
        shares[0, 1], shares[1, 1] = 1, 0
        numbers, best, recovered = scores_of(self.weight, shares)
        self.assertAlmostEqual(numbers["mmcs"], 1)
        self.assertEqual(numbers["features_recovered"], 4)
        self.assertEqual(best[0], best[1])
        self.assertTrue(recovered.all())

    def test_split_feature(self):
        shares = np.concatenate([np.eye(5), np.zeros((1, 5))])
        shares[0, 0], shares[5, 0] = 0.3, 0.7
        numbers, _, recovered = scores_of(self.weight, shares)
        self.assertEqual(numbers["features_recovered"], 4)
        self.assertFalse(recovered[0])

    def test_fewer_components_than_features(self):
        numbers, best, _ = scores_of(self.weight, np.eye(5)[:2])
        self.assertEqual(numbers["features_recovered"], 2)
        self.assertAlmostEqual(numbers["mmcs"], 2 / 5)
        self.assertLess(best.max(), 2)

    def test_an_opposite_component_is_no_match(self):
        numbers, _, recovered = scores_of(self.weight, -np.eye(5))
        self.assertAlmostEqual(numbers["mmcs"], 0)  # the zero rows of the others are the best
        self.assertFalse(recovered.any())

    @parameterized.parameters(False, True)
    def test_zero_rows_are_not_nan(self, in_target):
        weight = self.weight.copy()
        if in_target:
            weight[0] = 0
        components = handmade.row_components(weight, np.eye(5))
        components[0] = 0
        cosines, ratios = measures.row_similarity(weight, components)
        self.assertTrue(np.isfinite(cosines).all() and np.isfinite(ratios).all())
        self.assertEqual(cosines[0, 0], 0)
        numbers, _, _ = measures.superposition_scores(cosines, ratios)
        self.assertEqual(numbers["features_recovered"], 4)

    def test_equals_literal_loops(self):
        rng = np.random.default_rng(0)
        weight, components = rng.normal(size=(6, 3)), rng.normal(size=(4, 6, 3))
        numbers, best, _ = measures.superposition_scores(
            *measures.row_similarity(weight, components)
        )
        cosines, ratios = [], []
        for j in range(6):
            row = weight[j]
            values = []
            for c in range(4):
                piece = components[c, j]
                values.append((piece @ row) / np.sqrt((piece @ piece) * (row @ row)))
            winner = max(range(4), key=lambda c, values=values: values[c])
            self.assertEqual(best[j], winner)
            cosines.append(values[winner])
            piece = components[winner, j]
            ratios.append(np.sqrt(piece @ piece) / np.sqrt(row @ row))
        self.assertAlmostEqual(numbers["mmcs"], sum(cosines) / 6)
        self.assertAlmostEqual(numbers["ml2r"], sum(ratios) / 6)

    def test_component_order(self):
        order = measures.component_order(np.array([3, 1, 3, 0]), num_components=5)
        np.testing.assert_array_equal(order, [3, 1, 0, 2, 4])


class EvaluateTest(parameterized.TestCase):
    def exact(self, weight, shares, hidden=()):
        target = handmade.tms(weight, hidden)
        matrices = {"linear1/kernel": handmade.row_components(weight, shares)}
        for i, matrix in enumerate(hidden):
            matrices[f"hidden_{i}/kernel"] = (
                matrix[None] / len(shares) * np.ones((len(shares), 1, 1))
            )
        return target, handmade.full_rank(matrices)

    @pytest.mark.slow
    def test_exact_components_solve_it(self):
        # W is the identity, so that the network outputs its inputs exactly.
        numbers, arrays = evaluate(*self.exact(np.eye(4), np.eye(4)), inputs=handmade.ones(4, 1))
        self.assertEqual({key: type(value) for key, value in numbers.items()}, KEYS)
        self.assertTrue(numbers["solved"])
        self.assertEqual(numbers["features_recovered"], 4)
        for key in ("faithfulness_mse", "topk_mse"):
            self.assertAlmostEqual(numbers[key], 0, places=6)
        for values in arrays.label_errors[1:]:  # h = F: the baseline is exact, too
            np.testing.assert_allclose(values, 0, atol=1e-6)
        np.testing.assert_array_equal(arrays.label_errors.num_active, range(5))
        np.testing.assert_allclose(arrays.shares, np.eye(4), atol=1e-6)
        self.assertEqual(arrays.hidden.shape, (0, 4, 4))
        self.assertEqual(arrays.hidden_components.shape, (4, 0, 4, 4))

    @pytest.mark.slow
    def test_baseline_knows_as_many_features_as_hidden_dimensions(self):
        weight = np.eye(4)[:, :2]  # exact on two features, 0 on the others: the baseline itself
        numbers, arrays = evaluate(
            *self.exact(weight, np.eye(4)),
            inputs=handmade.ones(4, 1),
            samples=3000,
            batch_size=500,
        )
        errors = arrays.label_errors
        np.testing.assert_allclose(errors.baseline, errors.target, atol=1e-5)
        np.testing.assert_allclose(errors.topk, errors.target, atol=1e-5)
        np.testing.assert_allclose(errors.target, np.array([1, 1, 2, 3, 4]) / 8, atol=0.02)
        # Features without a direction can't be recovered.
        self.assertEqual(numbers["features_recovered"], 2)
        self.assertFalse(numbers["solved"])

    def test_shrunk_components(self):
        # A component with a share s outputs s² of its feature.
        numbers, _ = evaluate(*self.exact(np.eye(4), 0.5 * np.eye(4)), inputs=handmade.ones(4, 1))
        self.assertAlmostEqual(numbers["topk_mse"], 0.75**2 / 4, places=5)
        self.assertAlmostEqual(numbers["faithfulness_mse"], 0.25 / 4, places=6)
        self.assertFalse(numbers["solved"])

    @pytest.mark.slow
    def test_hidden_layers(self):
        rng = np.random.default_rng(0)
        weight, hidden = rng.normal(size=(4, 3)), [np.eye(3), rng.normal(size=(3, 3))]
        target, components = self.exact(weight, np.eye(4), hidden)
        numbers, arrays = evaluate(target, components)
        self.assertAlmostEqual(numbers["faithfulness_mse"], 0, places=6)
        self.assertAlmostEqual(numbers["mmcs"], 1, places=6)
        np.testing.assert_allclose(arrays.hidden, hidden, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(arrays.hidden_components.sum(axis=0), hidden, rtol=1e-5)
        again, _ = evaluate(target, components)
        self.assertEqual(numbers, again)


if __name__ == "__main__":
    absltest.main()
