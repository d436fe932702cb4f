"""Sites: finding and replacing the linear maps of a network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax import sites
from apd_jax.sites import Target


def zero(call):
    """An operation that silences a site."""
    y = sites.as_is(call)
    return jnp.zeros_like(y)


class Block(nn.Module):
    """Two layers below a name of their own."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.gelu(nn.Dense(3, use_bias=False)(x)))


class Network(nn.Module):
    """Dense layers of every kind: nested, shared, with bias, and one product written by hand."""

    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(3, name="shared")
        h = shared(Block(name="block")(x)) + shared(x)
        matrix = self.param("matrix", nn.initializers.normal(), (3, 2))
        return apd_jax.linear("matrix", nn.LayerNorm()(h), matrix)


class LinearTest(parameterized.TestCase):
    @parameterized.parameters(False, True)
    def test_is_a_product_outside_of_a_decomposition(self, transpose):
        x, w = networks.normal(0, 5, 2, 3), networks.normal(1, 3, 3)
        expected = np.asarray(x) @ (np.asarray(w).T if transpose else np.asarray(w))
        y = apd_jax.linear("w", x, w, transpose=transpose)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


class RunTest(parameterized.TestCase):
    @parameterized.parameters(*networks.NAMES)
    def test_as_is_changes_nothing(self, name):
        target, x = networks.make(name)
        outputs, records = sites.run(target, x, sites.as_is)
        np.testing.assert_array_equal(outputs, target(x))
        self.assertEqual({key[0] for key in records}, set(target.sites))

    def test_tied_matrix_is_one_site_used_twice(self):
        target, x = networks.make("tms_hidden")
        calls = []

        def operation(call):
            calls.append((call.name, call.use, call.transposed, call.x.shape))
            return sites.as_is(call)

        _, records = sites.run(target, x, operation)
        expected = [
            ("linear1", 0, False, (7, 4)),
            ("hidden_0", 0, False, (7, 2)),
            ("hidden_1", 0, False, (7, 2)),
            ("linear1", 1, True, (7, 2)),
        ]
        self.assertEqual(calls, expected)
        last = records["linear1", 1]
        self.assertTrue(last.transposed)
        np.testing.assert_allclose(last.y, last.x @ target.weights["linear1"].T, rtol=1e-6)

    def test_operation_replaces_every_use(self):
        target, x = networks.make("tms")
        outputs, _ = sites.run(target, x, zero)
        bias = jnp.maximum(target.params["b_final"], 0)
        np.testing.assert_array_equal(outputs, jnp.broadcast_to(bias, outputs.shape))

    def test_undeclared_sites_stay_as_they_are(self):
        whole, x = networks.make("mlp")
        part = Target(networks.mlp_apply, whole.params, ["second/w"])
        outputs, records = sites.run(part, x, zero)
        np.testing.assert_array_equal(
            outputs, jnp.broadcast_to(whole.params["second"]["b"], outputs.shape)
        )
        self.assertEqual(list(records), [("second/w", 0)])

    def test_jitted_network(self):
        whole, x = networks.make("mlp")
        target = Target(jax.jit(networks.mlp_apply), whole.params, whole.sites)
        target(x)  # compiled without the sites
        outputs, records = jax.jit(lambda t, x: sites.run(t, x, zero))(target, x)
        np.testing.assert_allclose(
            outputs, jnp.broadcast_to(whole.params["second"]["b"], outputs.shape)
        )
        self.assertLen(records, 2)

    def test_handler_is_gone_after_an_error(self):
        target, x = networks.make("mlp")
        with self.assertRaises(ZeroDivisionError):
            sites.run(target, x, lambda call: 1 // 0)
        self.assertEqual(target(x).shape, (7, 2))

    def test_unused_site_is_refused_with_those_found(self):
        params = {"used": jnp.eye(2), "unused": jnp.eye(2)}
        target = Target(
            lambda p, x: apd_jax.linear("used", x, p["used"]), params, ["used", "unused"]
        )
        message = r"sites \['unused'\] are never used by the network; it uses \['used'\]"
        with self.assertRaisesRegex(ValueError, message):
            sites.run(target, jnp.ones((1, 2)), sites.as_is)

    def test_matrix_of_another_shape_is_refused(self):
        params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 3))}
        target = Target(lambda p, x: apd_jax.linear("a", x, p["b"]), params, ["a"])
        with self.assertRaisesRegex(ValueError, r"'a' multiplies by .+\(2, 3\).+hold \(2, 2\)"):
            sites.run(target, jnp.ones((1, 2)), sites.as_is)


class FlaxTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.module = Network()
        self.x = networks.normal(0, 4, 3)
        self.variables = self.module.init(jax.random.key(0), self.x)

    def test_finds_every_dense_layer_by_its_path(self):
        target = Target.from_flax(self.module, self.variables)
        expected = {"block/Dense_0", "block/Dense_1", "shared"}
        self.assertEqual(set(target.sites), expected)
        np.testing.assert_array_equal(
            target.weights["shared"], self.variables["params"]["shared"]["kernel"]
        )

    def test_output_and_uses(self):
        names = ["shared", "matrix", "block/Dense_0"]
        target = Target.from_flax(self.module, self.variables, names)
        outputs, records = sites.run(target, self.x, sites.as_is)
        expected = self.module.apply(self.variables, self.x)
        np.testing.assert_allclose(outputs, expected, rtol=1e-6, atol=1e-6)
        uses = {("block/Dense_0", 0), ("shared", 0), ("shared", 1), ("matrix", 0)}
        self.assertEqual(set(records), uses)
        np.testing.assert_allclose(target(self.x), expected, rtol=1e-6, atol=1e-6)

    def test_equal_modules_share_a_program(self):
        traced = []

        @jax.jit
        def program(target, x):
            traced.append(None)
            return target(x)

        for _ in range(2):
            program(Target.from_flax(Network(), self.variables), self.x)
        self.assertLen(traced, 1)

    def test_unknown_site_is_refused_with_those_found(self):
        with self.assertRaisesRegex(ValueError, r"site 'shard'.+'block/Dense_0'.+'shared'"):
            Target.from_flax(self.module, self.variables, ["shard"])

    def test_module_with_state_is_refused(self):
        variables = {**self.variables, "batch_stats": {}}
        with self.assertRaisesRegex(ValueError, r"'params' alone, got \['batch_stats', 'params'\]"):
            Target.from_flax(self.module, variables)


class TargetTest(parameterized.TestCase):
    params = {"layer": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, "out": {"kernel": jnp.eye(3)}}

    def test_paths(self):
        target = Target(lambda p, x: x, self.params, {"A": "layer/w", "B": "out"})
        self.assertEqual(target.sites, ("A", "B"))
        self.assertEqual(target.weights["A"].shape, (2, 3))
        self.assertEqual(target.weights["B"].shape, (3, 3))

    @parameterized.parameters(
        ([], "sites is empty"),
        ("layer/w", "got the string 'layer/w'"),
        (["nothing"], r"site 'nothing': .+ at 'nothing'; found \['layer/w', 'out'\]"),
        (["layer/w/more"], "site 'layer/w/more'"),
        (["layer"], "site 'layer'"),
        (["layer/b"], "no .+ matrix at 'layer/b'"),
        ({"A": "layer/b"}, "site 'A': .+ at 'layer/b'"),
    )
    def test_bad_sites(self, names, message):
        with self.assertRaisesRegex(ValueError, message):
            Target(lambda p, x: x, self.params, names)

    def test_is_a_pytree_of_its_parameters(self):
        target = Target(networks.mlp_apply, {"w": jnp.eye(2)}, {"site": "w"})
        doubled = jax.tree.map(lambda leaf: 2 * leaf, target)
        np.testing.assert_array_equal(doubled.weights["site"], 2 * np.eye(2))
        self.assertEqual(doubled.sites, ("site",))
        stacked = jax.vmap(lambda s: jax.tree.map(lambda leaf: s * leaf, target))(jnp.arange(3.0))
        self.assertEqual(stacked.params["w"].shape, (3, 2, 2))


if __name__ == "__main__":
    absltest.main()
