"""Measures of gated functions on components whose purity is worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from apd_jax.components import Factors
from apd_jax.decomposition.result import Decomposition
from apd_jax.objective.coefficients import Coefficients
from apd_jax.objective.objective import Objective
from apd_jax.studies.gated_functions import measures
from apd_jax.studies.gated_functions.network import GatedFunctions, owners
from apd_jax.studies.gated_functions.study import GatedFunctionsStudy
from apd_jax.studies.probes import probe
from apd_jax.training.config import Settings

pytestmark = pytest.mark.slow

TASK = GatedFunctions(num_functions=3, neurons=4, num_layers=2)
PARAMS = jax.jit(TASK.init)(jax.random.key(7))
TARGET = TASK.target(PARAMS)
WEIGHTS = {site: np.asarray(weight, np.float64) for site, weight in TARGET.weights.items()}
PLACES = measures.supports(WEIGHTS, owners(PARAMS), 3)


def _truth() -> dict[str, np.ndarray]:
    """The true components, `{site: [3, d_in, d_out]}`."""
    return {site: weight * PLACES[site] for site, weight in WEIGHTS.items()}


def _decomposition(pieces: dict[str, np.ndarray]) -> Decomposition:
    """Components [C, d_in, d_out] as a decomposition, V the identity."""
    factors = {
        site: Factors.from_uv(
            jnp.asarray(matrices, jnp.float32),
            jnp.broadcast_to(jnp.eye(matrices.shape[2]), (len(matrices), *[matrices.shape[2]] * 2)),
        )
        for site, matrices in pieces.items()
    }
    objective = Objective(Coefficients(1.0, 1.0, 1.0), topk=0.15)
    settings = Settings(objective, num_components=3, steps=1, batch_size=1000, learning_rate=1e-3)
    return Decomposition(TARGET, factors, settings)


def _evaluate(pieces):
    return measures.evaluate_gated(
        TASK, _decomposition(pieces), key=jax.random.key(0), samples=2000
    )


class SupportsTest(absltest.TestCase):
    def test_supports_part_the_weights(self):
        for site, weight in WEIGHTS.items():
            np.testing.assert_array_equal(PLACES[site].sum(axis=0), weight != 0)
        total = sum(place.sum(axis=(1, 2)) for place in PLACES.values())
        np.testing.assert_array_equal(total, 3 * 4)  # of x, of the bit, to the output


class PurityTest(parameterized.TestCase):
    def test_truth_is_pure(self):
        order = [2, 0, 1]
        numbers, arrays = _evaluate({s: m[order] for s, m in _truth().items()})
        for name in ("weight_purity", "least_purity", "scaled_purity"):
            self.assertAlmostEqual(numbers[name], 1.0)
        self.assertEqual(numbers["weight_outside"], 0.0)
        self.assertEqual(numbers["features_recovered"], 3)
        self.assertTrue(numbers["solved"])
        self.assertLess(numbers["curve_mse"], 1e-8)
        np.testing.assert_array_equal(arrays.assignment, [1, 2, 0])
        np.testing.assert_allclose(arrays.shares, np.eye(3)[order], atol=1e-12)
        self.assertEqual(GatedFunctionsStudy().represented(arrays), [[2], [0], [1]])

    def test_merged_functions(self):
        """Functions 0 and 1 in one component: of three equal parts, two are in their place."""
        pieces = {s: np.stack([m[0] + m[1], 0 * m[0], m[2]]) for s, m in _truth().items()}
        numbers, arrays = _evaluate(pieces)
        parts = [sum(np.sum(m[i] ** 2) for m in _truth().values()) for i in range(3)]
        expected = (max(parts[:2]) + parts[2]) / sum(parts)
        self.assertAlmostEqual(numbers["weight_purity"], expected)
        self.assertEqual(numbers["features_recovered"], 1)
        self.assertFalse(numbers["solved"])
        self.assertEqual(numbers["least_purity"], 0.0)
        held = max(arrays.purity[:2])
        self.assertAlmostEqual(held, max(parts[:2]) / sum(parts[:2]))

    def test_halves_of_a_function_count_once(self):
        """A function in two equal halves: 1/4 of its square is in either."""
        pieces = {s: np.stack([m[0] / 2, m[0] / 2, m[1], m[2]]) for s, m in _truth().items()}
        numbers, arrays = _evaluate(pieces)
        self.assertAlmostEqual(arrays.purity[0], 0.5)
        np.testing.assert_allclose(arrays.shares[:, 0], [0.5, 0.5, 0, 0], atol=1e-12)

    def test_weight_outside(self):
        """Weight of the size of the whole, where the target has none."""
        pieces = _truth()
        size = np.sqrt(sum(np.sum(m**2) for m in pieces.values()))
        pieces["layers_0/mlp_out/kernel"][0, 0, 0] += size
        numbers, _ = _evaluate(pieces)
        self.assertAlmostEqual(numbers["weight_outside"], 0.5)
        self.assertAlmostEqual(numbers["weight_purity"], 0.5)

    def test_scaled_purity_hears_small_weights(self):
        """Weights that read x are a ten thousandth of the squares, and a third of the kinds."""
        pieces = _truth()
        for site in ("layers_0/mlp_in/kernel", "layers_1/mlp_in/kernel"):
            row = pieces[site][:, 0].sum(axis=0)
            pieces[site][:, 0] = 0.0
            pieces[site][0, 0] = row
        numbers, _ = _evaluate(pieces)
        self.assertGreater(numbers["weight_purity"], 0.999)
        self.assertAlmostEqual(numbers["scaled_purity"], 1 - (1 / 3) * (2 / 3), places=6)

    def test_more_functions_than_components(self):
        table = np.array([[4.0, 1.0, 2.0], [3.0, 5.0, 1.0]])
        np.testing.assert_array_equal(measures.assign(table), [0, 1, -1])
        purity = measures.function_purity(
            measures.Energies(table, table.sum(axis=1)), np.array([0, 1, -1])
        )
        np.testing.assert_allclose(purity, [4 / 10, 5 / 10, 0])

    def test_nothing(self):
        table = measures.Energies(np.zeros((2, 2)), np.zeros(2))
        chosen = measures.assign(table.inside)
        self.assertEqual(measures.weight_purity(table, chosen), 0.0)
        np.testing.assert_array_equal(measures.function_purity(table, chosen), 0.0)
        self.assertEqual(table.outside, 0.0)


class ProbesTest(absltest.TestCase):
    def test_probes_are_fewer_than_k_selects_of(self):
        """Of 3 inputs k = 0.15 selects none; probes have one component each all the same."""
        decomposition = _decomposition(_truth())
        x = GatedFunctionsStudy().probes(TASK).x
        np.testing.assert_array_equal(decomposition.attributions(x).argmax(axis=1), [0, 1, 2])
        found = probe(decomposition, TASK.inputs, x, key=jax.random.key(0), num_batches=1)
        np.testing.assert_array_equal(found.topk_mask, np.eye(3, dtype=bool))


class CurvesTest(absltest.TestCase):
    def test_error_of_a_component_at_half_its_size(self):
        """With half of the weights written, half of the function is missing."""
        pieces = _truth()
        for layer in ("layers_0", "layers_1"):
            pieces[f"{layer}/mlp_out/kernel"] = pieces[f"{layer}/mlp_out/kernel"] / 2
        numbers, arrays = _evaluate(pieces)
        np.testing.assert_allclose(arrays.topk_curves, arrays.curves / 2, atol=1e-4)
        self.assertAlmostEqual(numbers["curve_error"], 0.5, places=3)
        self.assertAlmostEqual(numbers["curve_mse"], np.mean(arrays.curves**2) / 4, places=4)


if __name__ == "__main__":
    absltest.main()
