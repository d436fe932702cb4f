"""The start from the target's own weights, on networks whose parts are known."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from apd_jax import parting
from apd_jax.components import init_components
from apd_jax.errors import UserError
from apd_jax.inputs import SparseFeatures
from apd_jax.sites import Target
from apd_jax.studies.gated_functions import measures
from apd_jax.studies.gated_functions.network import GatedFunctions, owners


def _parted(target, x, num_components, rank=None):
    start = init_components(jax.random.key(0), target, num_components=num_components, rank=rank)
    return jax.jit(parting.part_target)(target, x, start)


def _map(weight):
    """The target `x W`."""
    example = jax.ShapeDtypeStruct((2, weight.shape[0]), jnp.float32)
    return Target(lambda params, x: x @ params["w"], {"w": jnp.asarray(weight)}, inputs=example)


class GroupsTest(absltest.TestCase):
    def test_lines(self):
        """Two orthogonal lines, a sign on either, and examples between them."""
        signatures = jnp.array([[1.0, 0], [-2, 0], [3, 0], [0, 1], [0, -1], [0, 5], [1, 1]])
        groups = np.asarray(parting.group_lines(signatures, jnp.ones(7), 2))
        first = groups[0].argmax()
        np.testing.assert_array_equal(groups[:3].argmax(axis=1), first)
        np.testing.assert_array_equal(groups[3:6].argmax(axis=1), 1 - first)
        self.assertTrue((groups[:6].max(axis=1) > 0.05).all())
        self.assertLess(groups[6].max(), 1e-4)  # as near to one as to the other

    def test_examples_of_no_weight_count_for_nothing(self):
        signatures = jnp.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
        groups = parting.group_lines(signatures, jnp.array([1.0, 1, 0, 0]), 2)
        np.testing.assert_array_equal(groups[2:], 0.0)


class PartsTest(absltest.TestCase):
    def test_rows_of_a_map(self):
        """Of sparse inputs the parts are the rows, one a component."""
        weight = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
        x = SparseFeatures(4, 0.05)(jax.random.key(1), 8192)
        (factors,) = _parted(_map(weight), x, 4, rank=1).values()
        pieces = np.asarray(factors.matrices())
        order = np.linalg.norm(pieces, axis=2).argmax(axis=1)
        self.assertLen(set(order.tolist()), 4)
        for piece, row in zip(pieces, order, strict=True):
            expected = np.zeros_like(piece)
            expected[row] = weight[row]
            np.testing.assert_allclose(piece, expected, atol=0.05)

    def test_full_rank_parts_add_up(self):
        weight = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
        x = jax.random.normal(jax.random.key(2), (4096, 5))
        (factors,) = _parted(_map(weight), x, 3).values()
        np.testing.assert_allclose(factors.sum(), weight, atol=1e-2)

    def test_gated_functions(self):
        """Signs and sizes of x do not matter: the bits tell the functions apart."""
        task, key = GatedFunctions(), jax.random.key(0)
        params = task.init(key)
        target = task.target(params)
        components = _parted(target, task.inputs(jax.random.key(9), 8192), 4)
        weights = {site: np.asarray(w, np.float64) for site, w in target.weights.items()}
        pieces = {site: np.asarray(f.matrices(), np.float64) for site, f in components.items()}
        places = measures.supports(weights, owners(params), 4)
        table = measures.energies(pieces, places)
        chosen = measures.assign(table.inside)
        self.assertGreater(measures.function_purity(table, chosen).min(), 0.99)

    def test_refuses_look_ups(self):
        def network(params, x):
            return params["table"][x.astype(jnp.int32)].sum(axis=1)

        example = jax.ShapeDtypeStruct((2, 3), jnp.float32)
        target = Target(network, {"table": jnp.ones((7, 4))}, inputs=example)
        with self.assertRaisesRegex(UserError, "start 'random'"):
            _parted(target, jnp.zeros((16, 3)), 2)


if __name__ == "__main__":
    absltest.main()
