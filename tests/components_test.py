"""Components: sums, initialisation, unit norm."""

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax import components as module
from apd_jax.components import Factors
from apd_jax.training import unit_norm

# Wide, tall and square, so that both orders of the flat product are met.
SIZES = ((4, 2), (2, 4), (3, 3))


def factors(d_in, d_out, seed=0):
    return Factors.from_uv(
        networks.normal(seed, 3, d_in, 2), networks.normal(seed + 1, 3, 2, d_out)
    )


class FactorsTest(parameterized.TestCase):
    @parameterized.parameters(*SIZES)
    def test_views(self, d_in, d_out):
        U, V = networks.normal(0, 3, d_in, 2), networks.normal(1, 3, 2, d_out)
        both = Factors.from_uv(U, V)
        np.testing.assert_array_equal(both.U, U)
        np.testing.assert_array_equal(both.V, V)
        chex.assert_shape([both.reads, both.writes], [(3, 2, d_in), (3, 2, d_out)])
        expected = np.stack([u @ v for u, v in zip(U, V, strict=True)])
        np.testing.assert_allclose(both.matrices(), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(both.sum(), expected.sum(axis=0), rtol=1e-5, atol=1e-5)
        transposed = both.transpose().matrices()
        np.testing.assert_allclose(transposed, expected.swapaxes(1, 2), rtol=1e-5, atol=1e-6)

    @parameterized.parameters(*SIZES)
    def test_gradient_of_the_sum(self, d_in, d_out):
        weights = networks.normal(9, d_in, d_out)
        both = factors(d_in, d_out)
        found = jax.grad(lambda f: jnp.sum(weights * f.sum() ** 2))(both)
        expected = jax.grad(lambda f: jnp.sum(weights * f.matrices().sum(axis=0) ** 2))(both)
        chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)


class InitTest(parameterized.TestCase):
    @parameterized.parameters((1, 1.0), (12, 2.0))
    def test_statistics(self, instances, scale):
        target = networks.mlp(d_in=30, hidden=50, outputs=20)
        found = apd_jax.init_components(
            jax.random.key(0), target, num_components=40, rank=7, scale=scale, instances=instances
        )
        for site, weight in target.weights.items():
            for part, width in zip(found[site], weight.shape, strict=True):
                self.assertEqual(part.dtype, jnp.float32)
                expected = scale * np.sqrt(2 / ((40 + instances) * width * 7))
                # Of 5600 draws or more: six deviations of the estimates.
                deviation = expected / np.sqrt(part.size)
                self.assertAlmostEqual(float(part.mean()), 0.0, delta=6 * deviation)
                self.assertAlmostEqual(float(part.std()), expected, delta=6 * deviation)

    def test_shapes_at_full_rank(self):
        target, _ = networks.make("tms_hidden")
        found = apd_jax.init_components(jax.random.key(0), target, num_components=3)
        self.assertEqual(list(found), list(target.sites))
        chex.assert_shape(found["linear1/kernel"].U, (3, 4, 2))
        chex.assert_shape(found["linear1/kernel"].V, (3, 2, 2))

    def test_sites_and_factors_differ(self):
        target, _ = networks.make("tms_hidden")
        found = apd_jax.init_components(jax.random.key(0), target, num_components=3)
        first, second = found["hidden_0/kernel"], found["hidden_1/kernel"]
        square = [first.reads, first.writes, second.reads]
        self.assertLen(np.unique(np.stack(square).round(5)), 3 * 12)

    def test_same_key_same_draw(self):
        target, _ = networks.make("mlp")
        draws = [
            apd_jax.init_components(jax.random.key(seed), target, num_components=2)
            for seed in (0, 0, 1)
        ]
        chex.assert_trees_all_equal(draws[0], draws[1])
        self.assertFalse(np.array_equal(draws[0]["first/w"].reads, draws[2]["first/w"].reads))

    @parameterized.parameters(
        ({"num_components": 0}, "num_components must be at least 1, got 0"),
        ({"num_components": 2.5}, "num_components must be a whole number .+ got 2.5"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"rank": -2}, "rank must be at least 1, got -2"),
        ({"rank": 1.5}, "rank must be a whole number .+ got 1.5"),
        ({"instances": 0}, "instances must be at least 1, got 0"),
        ({"scale": 0.0}, "scale must be positive, got 0.0"),
        ({"scale": float("nan")}, "scale must be positive, got nan"),
    )
    def test_bad_arguments(self, arguments, message):
        target, _ = networks.make("mlp")
        with self.assertRaisesRegex(ValueError, message):
            apd_jax.init_components(
                jax.random.key(0), target, **({"num_components": 2} | arguments)
            )

    @parameterized.parameters(0, None, "key")
    def test_what_is_no_key_is_refused(self, key):
        target, _ = networks.make("mlp")
        with self.assertRaisesRegex(ValueError, "key must be a PRNG key"):
            apd_jax.init_components(key, target, num_components=2)

    def test_what_is_no_target_is_refused(self):
        with self.assertRaisesRegex(ValueError, "the network must be a Target, got a function"):
            apd_jax.init_components(jax.random.key(0), lambda params, x: x, num_components=2)

    def test_numbers_of_any_library(self):
        target, _ = networks.make("mlp")
        for kind in (np.int64, jnp.array, np.array):
            found = apd_jax.init_components(
                jax.random.key(0), target, num_components=kind(2), rank=kind(1), instances=kind(1)
            )
            chex.assert_shape(found["first/w"].reads, (2, 1, None))

    @parameterized.parameters(([1],), (3,), ("first/w",))
    def test_what_is_no_mapping_is_refused(self, components):
        target, _ = networks.make("mlp")
        with self.assertRaisesRegex(ValueError, "components must be a mapping"):
            module.check_components(target, components)

    @parameterized.named_parameters(
        ("array", lambda f: np.zeros((3, 3, 5)), "must be Factors, got a ndarray: Factors.from_uv"),
        ("tuple", lambda f: (f.reads, f.writes), "must be Factors, got a tuple: .*from_matrices"),
        ("list", lambda f: [f.reads, f.writes], "must be Factors, got a list"),
        ("none", lambda f: None, "must be Factors, got a NoneType"),
        ("lists", lambda f: module.Factors(f.reads.tolist(), f.writes), "Factors of arrays"),
        ("numbers", lambda f: module.Factors(1.0, 2.0), "Factors of arrays"),
        ("vectors", lambda f: module.Factors(f.reads[0, 0], f.writes), "Factors of arrays"),
        ("one", lambda f: module.Factors(f.reads[0], f.writes[0]), "has a matrix"),
    )
    def test_what_are_no_factors_is_refused(self, change, message):
        target, x = networks.make("mlp")
        found = networks.components(target)
        found["first/w"] = change(found["first/w"])
        for use in (
            lambda: module.check_components(target, found),
            lambda: apd_jax.gradient_attributions(target, found, x),
            lambda: apd_jax.masked_apply(target, found, x, jnp.ones((7, 3))),
            lambda: apd_jax.in_parameter_space(target, found),
            lambda: apd_jax.decompose(target, x, num_components=3, topk=1, init=found),
        ):
            with self.assertRaisesRegex(apd_jax.UserError, message):
                use()

    def test_names_that_are_no_text_are_refused(self):
        target, _ = networks.make("mlp")
        found = {0: 1} | networks.components(target)
        with self.assertRaisesRegex(apd_jax.UserError, "components are for sites .*0.*first/w"):
            module.check_components(target, found)


class UnitNormTest(absltest.TestCase):
    def test_normalise_reads(self):
        before = {"site": factors(4, 2)}
        after = unit_norm.normalise_reads(before)["site"]
        np.testing.assert_allclose(np.linalg.norm(after.U, axis=1), np.ones((3, 2)), rtol=1e-6)
        np.testing.assert_array_equal(after.V, before["site"].V)
        lengths = np.linalg.norm(before["site"].U, axis=1, keepdims=True)
        np.testing.assert_allclose(after.U * lengths, before["site"].U, rtol=1e-5)

    def test_projected_gradient(self):
        unit = unit_norm.normalise_reads({"site": factors(4, 2)})
        gradient = {"site": factors(4, 2, seed=7)}
        projected = unit_norm.project_gradient(gradient, unit, "literal")["site"]
        along = np.einsum("cim,cim->cm", projected.U, unit["site"].U)
        np.testing.assert_allclose(along, np.zeros((3, 2)), atol=1e-6)
        np.testing.assert_array_equal(projected.V, gradient["site"].V)
        removed = gradient["site"].U - projected.U
        size = np.einsum("cim,cim->cm", gradient["site"].U, unit["site"].U)
        np.testing.assert_allclose(removed, size[:, None] * unit["site"].U, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    absltest.main()
