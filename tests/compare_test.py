"""Components of two decompositions paired, and the control of shuffled matrices."""

import itertools

import evidence_cases as cases
import jax
import jax.numpy as jnp
import networks
import numpy as np
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.components import Factors
from apd_jax.evaluation.compare import cosines
from apd_jax.plotting import evidence_figures


def literal_cosines(first, second):
    """Cosines of the components as vectors over all sites."""

    def vectors(components):
        parts = [np.asarray(m).reshape(len(m), -1) for m in networks.matrices(components).values()]
        return np.concatenate(parts, axis=1)

    a, b = vectors(first), vectors(second)
    lengths = np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    return (a @ b.T) / lengths


class CompareTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.target = networks.mlp()
        self.first = networks.components(self.target, 4, 2)
        self.second = networks.components(self.target, 5, 3, seed=50)

    def test_cosines_are_the_literal_ones(self):
        found = cosines(self.first, self.second)
        np.testing.assert_allclose(found, literal_cosines(self.first, self.second), atol=1e-5)

    def test_stacked_sites(self):
        reads, writes = networks.normal(0, 3, 2, 1, 4), networks.normal(1, 3, 2, 1, 5)
        found = cosines({"w": Factors(reads, writes)}, {"w": Factors(2 * reads, writes)})
        np.testing.assert_allclose(found.diagonal(), 1, rtol=1e-5)

    def test_pairs_have_the_largest_total(self):
        match = apd_jax.compare(self.first, self.second)
        table = literal_cosines(self.first, self.second)
        best = max(
            sum(table[i, j] for i, j in enumerate(order))
            for order in itertools.permutations(range(5), 4)
        )
        self.assertAlmostEqual(match.cosines.sum(), best, places=4)
        self.assertAlmostEqual(match.mmcs_first, table.max(axis=1).mean(), places=5)
        self.assertAlmostEqual(match.mmcs_second, table.max(axis=0).mean(), places=5)

    def test_the_same_in_another_order_with_one_changed_and_one_empty(self):
        order = np.array([2, 0, 3, 1])
        moved = {s: Factors(f.reads[order], f.writes[order]) for s, f in self.first.items()}
        moved = {
            s: Factors(f.reads.at[3].set(networks.normal(7, *f.reads.shape[1:])), f.writes)
            for s, f in moved.items()
        }
        emptied = {s: Factors(f.reads.at[1].mul(0.0), f.writes) for s, f in moved.items()}
        match = apd_jax.compare(self.first, emptied)
        matched = match.pairs[match.cosines > 0.9].tolist()
        self.assertCountEqual(matched, [[2, 0], [3, 2]])
        self.assertEqual(match.unmatched_first, [0, 1])
        self.assertEqual(match.unmatched_second, [3])
        self.assertEqual(match.empty_second, [1])
        self.assertAlmostEqual(match.matched_share, 4 / 7)
        self.assertIn("57.1%", repr(match))
        self.assertIn("<td>first to second</td>", match._repr_html_())

    def test_many_seeds(self):
        x = networks.normal(5, 4, 3)
        found = [
            cases.decomposition(networks.mlp(), networks.components(self.target, 4, 2, seed=s), x)
            for s in (0, 0, 40)
        ]
        matrix = apd_jax.compare_seeds(found, ["a", "b", "c"])
        self.assertAlmostEqual(matrix.mmcs[0, 1], 1.0, places=5)
        self.assertEqual(matrix.matched[0, 1], 1.0)
        match = apd_jax.compare(found[0], found[2])
        self.assertAlmostEqual(matrix.mmcs[0, 2], match.mmcs_first, places=6)
        self.assertAlmostEqual(matrix.mmcs[2, 0], match.mmcs_second, places=6)
        self.assertIn("Mean over pairs", repr(matrix))
        self.assertLen(evidence_figures.seeds(matrix).axes, 4)

    def test_without_any_component_that_is_not_empty(self):
        match = apd_jax.compare(self.first, jax.tree.map(jnp.zeros_like, self.second))
        self.assertEqual((match.mmcs_first, match.mmcs_second, match.matched_share), (0, 0, 0))
        self.assertEqual((match.unmatched_first, match.empty_second), ([*range(4)], [*range(5)]))
        self.assertIn("0 and 5 are empty", repr(match))

    def test_networks_whose_sites_are_not_known_yet(self):
        """As of a run of a study that is loaded: only a network that has run knows its sites."""

        def loaded(scale):
            params = jax.tree.map(lambda leaf: leaf * scale, networks.mlp().params)
            target = apd_jax.Target(networks.mlp_apply, params)
            return apd_jax.Decomposition(target, self.first, apd_jax.Settings())

        known = apd_jax.Decomposition(networks.mlp(), self.first, apd_jax.Settings())
        for one, other in ((loaded(1), loaded(1)), (known, loaded(1)), (loaded(1), known)):
            self.assertEqual(apd_jax.compare(one, other).matched_share, 1)
        for one, other in ((loaded(1), loaded(2)), (known, loaded(2))):
            with self.assertRaisesRegex(apd_jax.UserError, "the weights of .* differ"):
                apd_jax.compare(one, other)

    def test_one_with_itself_has_cosines_of_1(self):
        self.assertEqual(apd_jax.compare(self.first, self.first, threshold=1).matched_share, 1)

    def test_refused(self):
        other = networks.components(networks.mlp(hidden=6), 4, 2)
        with self.assertRaisesRegex(apd_jax.UserError, "different networks"):
            apd_jax.compare(self.first, other)
        x = networks.normal(5, 4, 3)
        moved = self.target.with_weights({"first/w": networks.normal(8, 3, 5)})
        two = [cases.decomposition(t, self.first, x) for t in (self.target, moved)]
        with self.assertRaisesRegex(apd_jax.UserError, "weights of 'first/w' differ"):
            apd_jax.compare(*two)
        with self.assertRaisesRegex(apd_jax.UserError, "got a int"):
            apd_jax.compare(self.first, 3)
        with self.assertRaisesRegex(apd_jax.UserError, "got a dict without components"):
            apd_jax.compare({}, {})
        for threshold in (2, "0.9", None, np.nan):
            with self.assertRaisesRegex(apd_jax.UserError, "threshold must be"):
                apd_jax.compare(self.first, self.second, threshold=threshold)
        for names in (["a"], 3, "ab"):
            with self.assertRaisesRegex(apd_jax.UserError, "names must be"):
                apd_jax.compare_seeds([self.first, self.second], names)
        broken = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), self.second)
        with self.assertRaisesRegex(apd_jax.UserError, r"components \[1\] hold NaN or infinity"):
            apd_jax.compare(self.first, broken)
        with self.assertRaisesRegex(apd_jax.UserError, "a list of decompositions, got a dict"):
            apd_jax.compare_seeds(self.first)
        with self.assertRaisesRegex(apd_jax.UserError, "at least 2"):
            apd_jax.compare_seeds([self.first])


class ShuffledTest(absltest.TestCase):
    def test_matrices_keep_their_values_and_biases_stay(self):
        params = networks.mlp().params
        moved = apd_jax.shuffled(params, jax.random.key(0))
        for layer in ("first", "second"):
            before, after = params[layer]["w"], moved[layer]["w"]
            self.assertEqual(before.shape, after.shape)
            np.testing.assert_array_equal(np.sort(before, axis=None), np.sort(after, axis=None))
            self.assertFalse(np.array_equal(before, after))
            np.testing.assert_array_equal(params[layer]["b"], moved[layer]["b"])

    def test_equal_matrices_are_shuffled_each_in_its_own_way(self):
        one = jnp.arange(12.0).reshape(3, 4)
        moved = apd_jax.shuffled([one, one], 3)
        self.assertFalse(np.array_equal(*moved))
        np.testing.assert_array_equal(moved[0], apd_jax.shuffled([one, one], 3)[0])

    def test_keys(self):
        params = {"w": jnp.arange(12.0).reshape(3, 4)}
        found = apd_jax.shuffled(params, 3)
        for key in (np.int64(3), jnp.array(3), jax.random.key(3), jax.random.PRNGKey(3)):
            np.testing.assert_array_equal(apd_jax.shuffled(params, key)["w"], found["w"])
        with self.assertRaisesRegex(apd_jax.UserError, "seed must be a whole number"):
            apd_jax.shuffled(params, 0.5)

    def test_nothing_to_shuffle(self):
        with self.assertRaisesRegex(apd_jax.UserError, "no matrix"):
            apd_jax.shuffled({"b": jnp.ones(3)}, 0)


if __name__ == "__main__":
    absltest.main()
