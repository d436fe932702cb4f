"""Linear maps: what is drawn, and measures of components worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from apd_jax.components import Factors
from apd_jax.decomposition.result import Decomposition
from apd_jax.errors import UserError
from apd_jax.objective.coefficients import Coefficients
from apd_jax.objective.objective import Objective
from apd_jax.studies.linear_map import measures
from apd_jax.studies.linear_map.network import LinearMap
from apd_jax.studies.linear_map.study import STUDY
from apd_jax.training.config import Settings


def _evaluate(task, pieces, topk, selection="batch"):
    """Measure components [C, d, d] of a map."""
    target = task.target(task.init(jax.random.key(0)))
    identity = jnp.broadcast_to(jnp.eye(task.width), (len(pieces), task.width, task.width))
    (site,) = target.sites
    factors = {site: Factors.from_uv(jnp.asarray(pieces, jnp.float32), identity)}
    objective = Objective(Coefficients(1.0, 1.0, 1.0), topk=topk, selection=selection)
    settings = Settings(
        objective, num_components=len(pieces), steps=1, batch_size=500, learning_rate=1e-3
    )
    decomposition = Decomposition(target, factors, settings)
    return measures.evaluate_linear_map(task, decomposition, key=jax.random.key(1), samples=1000)


class NetworkTest(parameterized.TestCase):
    @parameterized.parameters(("identity", 6), ("orthogonal", 6), ("low-rank", 2))
    def test_matrix(self, kind, rank):
        task = LinearMap(width=6, kind=kind, map_rank=2)
        w = np.asarray(task.init(jax.random.key(0))["w"])
        np.testing.assert_allclose(np.linalg.norm(w, axis=1), 1.0, atol=1e-5)
        self.assertEqual(np.linalg.matrix_rank(w, tol=1e-4), rank)
        if kind != "low-rank":
            np.testing.assert_allclose(w @ w.T, np.eye(6), atol=1e-5)
        x = jnp.arange(12.0).reshape(2, 6)
        np.testing.assert_allclose(task.target({"w": jnp.asarray(w)})(x), x @ w, rtol=1e-5)

    def test_inputs(self):
        sparse = LinearMap(width=4, probability=0.1).inputs(jax.random.key(0), 20_000)
        self.assertAlmostEqual(float((sparse != 0).mean()), 0.1, delta=0.005)
        dense = LinearMap(width=4, sample="gaussian").inputs(jax.random.key(0), 20_000)
        np.testing.assert_allclose(np.cov(dense.T), np.eye(4), atol=0.05)

    @parameterized.parameters(
        (dict(width=0), "width"),
        (dict(kind="low-rank", width=3, map_rank=3), "map_rank"),
        (dict(kind="diagonal"), "kind"),
        (dict(sample="dense"), "sample"),
        (dict(probability=1.5), "probability"),
    )
    def test_refuses(self, fields, name):
        with self.assertRaisesRegex(UserError, name):
            LinearMap(**fields)


class MeasuresTest(absltest.TestCase):
    def test_effective_ranks(self):
        values = np.array([[2.0, 2.0, 2.0], [3.0, 0.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        np.testing.assert_allclose(measures.effective_ranks(values), [3, 1, 16 / 10, 0])

    def test_a_row_a_component(self):
        pieces = np.zeros((5, 4, 4))
        for component, row in enumerate([2, 0, 3, 1]):
            pieces[component, row, row] = 1.0
        numbers, arrays = _evaluate(LinearMap(width=4), pieces, topk=0.4)
        self.assertTrue(numbers["solved"])
        self.assertEqual(numbers["features_recovered"], 4)
        self.assertAlmostEqual(numbers["effective_rank"], 1.0)
        self.assertLess(numbers["topk_mse"], 1e-12)
        self.assertEqual(STUDY.represented(arrays), [[2], [0], [3], [1], []])

    def test_rows_together(self):
        pieces = np.stack([np.diag([1.0, 1, 0]), np.diag([0.0, 0, 1])])
        numbers, _ = _evaluate(LinearMap(width=3), pieces, topk=0.4)
        self.assertFalse(numbers["solved"])
        self.assertAlmostEqual(numbers["effective_rank"], (2 * 2 + 1) / 3)

    def test_gaussian_inputs_are_judged_by_the_output(self):
        task = LinearMap(width=3, sample="gaussian")
        halves = np.stack([np.eye(3) / 2, np.eye(3) / 2])
        numbers, _ = _evaluate(task, halves, topk=2.0)
        self.assertTrue(numbers["solved"])
        numbers, _ = _evaluate(task, halves, topk=1, selection="sample")
        self.assertFalse(numbers["solved"])
        self.assertAlmostEqual(numbers["relative_error"], 0.25, places=5)


if __name__ == "__main__":
    absltest.main()
