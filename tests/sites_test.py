"""Sites: what is found in a traced program, and what is refused by name."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
from absl.testing import absltest, parameterized

from apd_jax import sites
from apd_jax.decomposition import checks
from apd_jax.errors import UserError
from apd_jax.objective.coefficients import Coefficients
from apd_jax.objective.objective import Objective
from apd_jax.sites import Target

ANY = Objective(Coefficients(), topk=1.0)


def zero(call):
    """An operation that silences a site."""
    return jnp.zeros_like(call.as_is())


class Block(nn.Module):
    """Two layers below a name of their own."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.gelu(nn.Dense(3, use_bias=False)(x)))


class Network(nn.Module):
    """Dense layers of every kind: nested, shared, with bias, and one product written by hand."""

    @nn.compact
    def __call__(self, x, scale=1.0):
        shared = nn.Dense(3, name="shared")
        h = shared(Block(name="block")(x)) + shared(x)
        matrix = self.param("matrix", nn.initializers.normal(), (3, 2))
        return scale * (nn.LayerNorm()(h) @ matrix)


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
            calls.append((*call.key, call.placement.transposed, call.x.shape))
            return sites.as_is(call)

        _, records = sites.run(target, x, operation)
        expected = [
            ("linear1/kernel", 0, False, (7, 4)),
            ("hidden_0/kernel", 0, False, (7, 2)),
            ("hidden_1/kernel", 0, False, (7, 2)),
            ("linear1/kernel", 1, True, (7, 2)),
        ]
        self.assertEqual(calls, expected)
        last = records["linear1/kernel", 1]
        self.assertTrue(last.placement.transposed)
        np.testing.assert_allclose(last.y, last.x @ target.weights["linear1/kernel"].T, rtol=1e-6)

    def test_operation_replaces_every_use(self):
        target, x = networks.make("tms")
        outputs, _ = sites.run(target, x, zero)
        bias = jnp.maximum(target.params["b_final"], 0)
        np.testing.assert_array_equal(outputs, jnp.broadcast_to(bias, outputs.shape))

    def test_sites_that_are_not_chosen_stay_as_they_are(self):
        whole, x = networks.make("mlp")
        part = Target(networks.mlp_apply, whole.params, ["second/w"])
        outputs, records = sites.run(part, x, zero)
        np.testing.assert_array_equal(
            outputs, jnp.broadcast_to(whole.params["second"]["b"], outputs.shape)
        )
        self.assertEqual(list(records), [("second/w", 0)])

    def test_jitted_network(self):
        whole, x = networks.make("mlp")
        target = Target(jax.jit(networks.mlp_apply), whole.params)
        outputs, records = jax.jit(lambda t, x: sites.run(t, x, zero))(target, x)
        np.testing.assert_allclose(
            outputs, jnp.broadcast_to(whole.params["second"]["b"], outputs.shape)
        )
        self.assertLen(records, 2)

    def test_derivative_of_an_activation_stays_its_own(self):
        # relu has slope 0 at 0 by its own rule; max has 1/2.
        target = Target(lambda p, x: jax.nn.relu(x @ p["w"]), {"w": jnp.eye(2)})
        x = jnp.zeros((1, 2))

        def output(scale):
            return sites.run(target, x, lambda call: call.as_is() + scale)[0].sum()

        self.assertEqual(float(jax.grad(output)(0.0)), 0.0)

    def test_a_network_that_closes_over_traced_values(self):
        traced = []

        @jax.jit
        def inside(shift, x):
            traced.append(None)
            target = Target(lambda p, x: x @ p["w"] + shift, {"w": jnp.eye(2)})
            return sites.run(target, x, sites.as_is)[0]

        x = jnp.ones((3, 2))
        for shift in (1.0, 2.0):
            np.testing.assert_array_equal(inside(shift, x), x + shift)
            inside.clear_cache()
        self.assertLen(traced, 2)


class FoundTest(parameterized.TestCase):
    """What becomes a site, and by which matrix."""

    def found(self, apply_fn, params, width=3, **options):
        x = networks.normal(0, 4, width)
        target = Target(apply_fn, params, inputs=x, **options)
        outputs, _ = sites.run(target, x, sites.as_is)
        np.testing.assert_allclose(outputs, target(x), rtol=1e-6, atol=1e-6)
        for name, site in target.sites.items():
            leaf = jax.tree.leaves(params)[site.leaf]
            again = site.insert(leaf, target.weights[name])
            np.testing.assert_array_equal(again, leaf)
        return target

    def test_stacked_leaf_under_scan_is_a_site_a_layer(self):
        def apply_fn(p, x):
            return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["layers"]["kernel"])[0]

        target = self.found(apply_fn, {"layers": {"kernel": networks.normal(1, 2, 3, 3)}})
        self.assertEqual(list(target.sites), ["layers/kernel[0]", "layers/kernel[1]"])
        self.assertEqual(target.sites["layers[1]"].name, "layers/kernel[1]")

    def test_leaf_that_stays_in_a_scan_is_used_once_a_turn(self):
        def apply_fn(p, x):
            return jax.lax.scan(lambda h, _: (jnp.tanh(h @ p["w"]), None), x, length=3)[0]

        target = self.found(apply_fn, {"w": networks.normal(1, 3, 3)})
        self.assertLen(target.sites["w"].kinds, 3)

    def test_fused_matrix_used_in_slices_counts_once(self):
        def apply_fn(p, x):
            q, k = jnp.split(x @ p["qkv"][:, :4], 2, axis=-1)
            return q * k + x @ p["qkv"][:, 4:]

        target = self.found(apply_fn, {"qkv": networks.normal(1, 3, 6)})
        self.assertEqual(target.sites["qkv"].shape, (3, 6))
        _, records = sites.run(target, networks.normal(0, 4, 3), sites.as_is)
        self.assertAlmostEqual(sum(r.placement.share for r in records.values()), 1.0)

    def test_heads_cut_out_of_one_axis_are_a_stack(self):
        def apply_fn(p, x):
            heads = p["w"].reshape(2, 2, 3)
            return jnp.einsum("bhk,hkd->bhd", x.reshape(-1, 2, 2), heads).sum(axis=1)

        target = self.found(apply_fn, {"w": networks.normal(1, 4, 3)}, width=4)
        self.assertEqual(target.sites["w"].shape, (2, 2, 3))

    def test_weight_on_the_left(self):
        target = self.found(
            lambda p, x: jax.vmap(lambda v: p["weight"] @ v)(x),
            {"weight": networks.normal(1, 5, 3)},
        )
        self.assertEqual(target.sites["weight"].shape, (3, 5))
        np.testing.assert_array_equal(target.weights["weight"], target.params["weight"].T)

    def test_table(self):
        target = self.found(
            lambda p, x: x @ p["w"] + p["b"], {"w": networks.normal(1, 3, 2), "b": jnp.ones(2)}
        )
        self.assertRegex(repr(target.sites), r"w +3 x 2 +product")
        self.assertRegex(
            repr(target.sites), r"b \[2\]: .+ is not a product, convolution or look-up"
        )


class RefusedTest(parameterized.TestCase):
    """Leaves that are not, or not only, multiplied by: each is named with its equation."""

    @parameterized.named_parameters(
        ("scaled", lambda p, x: x @ (2 * p["w"]), "mul is not a product"),
        ("norm", lambda p, x: x @ p["w"] + jnp.sum(p["w"] ** 2), "is not a product"),
        ("parameters", lambda p, x: x @ (p["w"] @ p["v"]), "of a parameter with a parameter"),
        ("elementwise", lambda p, x: (x @ p["w"]) * p["w"][0], "mul is not a product"),
        ("weight_norm", lambda p, x: x @ (p["w"] / jnp.linalg.norm(p["w"])), "with a parameter"),
        ("fixed_places", lambda p, x: x + p["w"][jnp.array([0, 1, 2])][0], "don't depend on"),
        (
            "stopped",
            lambda p, x: x @ jax.lax.stop_gradient(p["w"]),
            "stop_gradient is not a product",
        ),
        ("returned", lambda p, x: (x, p["w"]), "the network returns it"),
        (
            "loop",
            lambda p, x: jax.lax.while_loop(lambda h: h[0, 0] < 1, lambda h: h @ p["w"], x),
            "inside a while",
        ),
        ("mixed", lambda p, x: jnp.einsum("bi,ii->b", x, p["w"]), "w"),
        ("unused", lambda p, x: x, "don't depend on it"),
    )
    def test_by_name(self, apply_fn, reason):
        params = {"v": jnp.eye(3), "w": jnp.eye(3)}
        with self.assertRaisesRegex(ValueError, rf"(?s)can't be decomposed.*w .*{reason}"):
            Target(apply_fn, params, ["w"], inputs=jnp.ones((2, 3)))

    def test_a_parameter_without_numbers_is_left_as_it_is(self):
        params = {"empty": jnp.zeros((3, 0)), "w": jnp.eye(3)}
        target = Target(lambda p, x: (x @ p["w"], x @ p["empty"]), params, inputs=jnp.ones((2, 3)))
        self.assertEqual(list(target.sites), ["w"])
        self.assertRegex(str(target.sites), r"empty \[3, 0\]: it has no numbers")

    @parameterized.parameters(
        (["nothing"], r"fits 'nothing'; there are \['layer/b', 'layer/w', 'out/kernel'\]"),
        ("layer/w[0]", r"parameter that can be decomposed fits 'layer/w\[0\]'"),
        (["layer/b"], r"layer/b \[3\]: add is not a product"),
        (lambda path, leaf: path == "layer/b", r"layer/b \[3\]"),
        (
            lambda path, leaf: False,
            r"selects no parameter: it gives False for all of \['layer/b', 'layer/w', 'out/kernel'",
        ),
        (lambda path, leaf: None, "selects no parameter"),
        (
            lambda path, leaf: leaf > 0,
            "must give True or False for each parameter, got .*'layer/b'",
        ),
    )
    def test_bad_choice(self, chosen, message):
        params = {
            "layer": {"w": jnp.ones((3, 3)), "b": jnp.ones(3)},
            "out": {"kernel": jnp.eye(3)},
        }

        def apply_fn(p, x):
            return (x @ p["layer"]["w"] + p["layer"]["b"]) @ p["out"]["kernel"]

        with self.assertRaisesRegex(ValueError, message):
            Target(apply_fn, params, chosen, inputs=jnp.ones((2, 3)))
        kept = Target(apply_fn, params, "layer/*", inputs=jnp.ones((2, 3)))
        self.assertEqual(list(kept.sites), ["layer/w"])

    def test_before_inputs_are_seen(self):
        target = Target(lambda p, x: x @ p["w"], {"w": jnp.eye(2)})
        with self.assertRaisesRegex(ValueError, "give Target an example"):
            _ = target.sites
        self.assertEqual(list(target.at(jnp.ones((1, 2))).sites), ["w"])

    @parameterized.parameters("layers/v*", "layers/v[1]", (["layers/w", "v"],))
    def test_unknown_name_is_refused_before_inputs_are_seen(self, chosen):
        params = {"layers": {"w": jnp.ones((3, 2, 2))}}
        with self.assertRaisesRegex(UserError, r"no parameter fits .+ there are \['layers/w'\]"):
            Target(lambda p, x: x @ p["layers"]["w"][0], params, chosen)
        for known in ("layers/*", "layers", "layers/w[0]", "layers/w[?]"):
            Target(lambda p, x: x, params, known)

    @parameterized.parameters(([],), ((),), (iter(()),), ({},), (np.array([], str),))
    def test_no_name_is_refused(self, chosen):
        with self.assertRaisesRegex(UserError, "sites names nothing to decompose, got .* or None"):
            Target(lambda p, x: x @ p["w"], {"w": jnp.eye(2)}, chosen)

    @parameterized.parameters(
        (lambda path: True,), (lambda: True,), (lambda path, leaf, more: True,)
    )
    def test_a_function_of_other_arguments_is_refused(self, chosen):
        with self.assertRaisesRegex(UserError, r"sites must be a function of \(path, leaf\)"):
            Target(lambda p, x: x @ p["w"], {"w": jnp.eye(2)}, chosen)

    def test_a_network_without_parameters(self):
        for chosen in (None, lambda path, leaf: True):
            with self.assertRaisesRegex(UserError, "to decompose: the network has no parameters"):
                Target(lambda p, x: x, {}, chosen, inputs=jnp.ones((2, 3)))

    @parameterized.parameters((3,), ([3],), (b"w",), (["w", None],))
    def test_what_is_no_name_is_refused(self, chosen):
        with self.assertRaisesRegex(UserError, "sites must be a name, or several, got"):
            Target(lambda p, x: x @ p["w"], {"w": jnp.eye(2)}, chosen)

    @parameterized.parameters(({"w"},), ({"w": 1},), (np.array(["w"]),), (iter(["w"]),))
    def test_names_in_any_container(self, chosen):
        target = Target(lambda p, x: x @ p["w"], {"w": jnp.eye(2)}, chosen)
        jax.jit(lambda target, x: target.at(x)(x))(target, jnp.ones((3, 2)))
        self.assertEqual(list(target.at(jnp.ones((3, 2))).sites), ["w"])

    def test_a_network_that_is_no_function(self):
        with self.assertRaisesRegex(UserError, r"function \(params, x\) -> outputs, .* got a dict"):
            Target({"w": jnp.eye(2)}, lambda p, x: x @ p["w"])


class CheckTest(parameterized.TestCase):
    """What is seen of a network before training."""

    def check(self, apply_fn, params=None, x=None):
        x = networks.normal(0, 4, 3) if x is None else x
        checks.check_target(Target(apply_fn, params or {"w": networks.normal(1, 3, 3)}), x, ANY)

    def test_examples_that_mix(self):
        def batch_norm(p, x):
            h = x @ p["w"]
            return (h - h.mean(axis=0)) / h.std(axis=0)

        with self.assertRaisesRegex(ValueError, "depends on the other examples"):
            self.check(batch_norm)

    def test_examples_that_depend_on_their_place(self):
        """As with dropout that is on: the draws of a row are its place's."""

        def dropout(p, x):
            kept = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
            return jnp.where(kept, 2 * x, 0) @ p["w"]

        with self.assertRaisesRegex(ValueError, "on its place in the batch, as with dropout"):
            self.check(dropout)

    def test_outputs_that_no_loss_compares(self):
        with self.assertRaisesRegex(ValueError, "NaN or infinity on the examples"):
            self.check(lambda p, x: (x @ p["w"]).at[1].set(jnp.nan))
        ruled_out = lambda p, x: (x @ p["w"]).at[:, 0].set(-jnp.inf)  # noqa: E731
        with self.assertRaisesRegex(ValueError, "−∞.*minimality_loss='kl'"):
            self.check(ruled_out)
        x, target = networks.normal(0, 4, 3), Target(ruled_out, {"w": networks.normal(1, 3, 3)})
        checks.check_target(target, x, dataclasses.replace(ANY, minimality_loss="kl"))

    def test_derivative_that_is_not_that_of_the_equations(self):
        @jax.custom_jvp
        def doubtful(w, x):
            return x @ w

        doubtful.defjvp(lambda at, along: (doubtful(*at), at[1] @ along[0] / 2))
        with self.assertRaisesRegex(ValueError, "inside a custom derivative"):
            self.check(lambda p, x: doubtful(p["w"], x))

    @parameterized.parameters((object(),), (np.ones((4, 3), object),), (np.array(["a"]),))
    def test_inputs_that_are_no_arrays(self, x):
        with self.assertRaisesRegex(ValueError, "(must be arrays of|expected) numbers.* got a"):
            self.check(lambda p, x: x @ p["w"], x=x)

    def test_outputs_without_an_entry(self):
        with self.assertRaisesRegex(ValueError, r"nothing to compare: outputs .*\(\d, 0\)"):
            self.check(lambda p, x: (x @ p["w"])[:, :0])

    @parameterized.parameters(
        (lambda p, x: jnp.sqrt(jax.nn.relu(x @ p["w"])),),
        (lambda p, x: jnp.linalg.norm(jax.nn.relu(x @ p["w"] - 9)[:, None], axis=-1),),
    )
    def test_derivatives_that_are_not_finite(self, apply_fn):
        with self.assertRaisesRegex(ValueError, "derivatives .* are NaN or infinite"):
            self.check(apply_fn)

    def test_parameters_that_are_not_finite(self):
        with self.assertRaisesRegex(ValueError, "parameter 'w' holds NaN"):
            self.check(lambda p, x: x @ p["w"], {"w": jnp.full((3, 3), jnp.nan)})

    @parameterized.parameters(
        (lambda p, x: jnp.argmax(x @ p["w"], axis=-1), "arrays of real numbers"),
        (lambda p, x: jnp.sum(x @ p["w"]), r"outputs \[B, \.\.\.\]"),
    )
    def test_outputs(self, apply_fn, message):
        with self.assertRaisesRegex(ValueError, message):
            self.check(apply_fn)

    def test_example_by_example_where_the_batch_is_merged(self):
        def apply_fn(p, x):
            return jnp.tanh(x.reshape(-1, 3) @ p["w"]).reshape(len(x), -1)

        x = networks.normal(0, 4, 2, 3)
        target = Target(apply_fn, {"w": networks.normal(1, 3, 3)}, inputs=x)
        self.assertFalse(sites.batched(target, x))
        self.check(apply_fn, x=x)


class FlaxTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.module = Network()
        self.x = networks.normal(0, 4, 3)
        self.variables = self.module.init(jax.random.key(0), self.x)

    def test_finds_every_product_by_its_path(self):
        target = Target.from_flax(self.module, self.variables, inputs=self.x)
        expected = {"block/Dense_0/kernel", "block/Dense_1/kernel", "matrix", "shared/kernel"}
        self.assertEqual(set(target.sites), expected)
        np.testing.assert_array_equal(
            target.weights["shared/kernel"], self.variables["params"]["shared"]["kernel"]
        )

    def test_output_and_uses(self):
        names = ["shared", "matrix", "block/Dense_0"]
        target = Target.from_flax(self.module, self.variables, names)
        outputs, records = sites.run(target, self.x, sites.as_is)
        expected = self.module.apply(self.variables, self.x)
        np.testing.assert_allclose(outputs, expected, rtol=1e-6, atol=1e-6)
        uses = {("block/Dense_0/kernel", 0), ("matrix", 0)}
        uses |= {("shared/kernel", 0), ("shared/kernel", 1)}
        self.assertEqual(set(records), uses)
        np.testing.assert_allclose(target(self.x), expected, rtol=1e-6, atol=1e-6)

    def test_fixed_keywords(self):
        target = Target.from_flax(self.module, self.variables, inputs=self.x, scale=2.0)
        expected = self.module.apply(self.variables, self.x, 2.0)
        np.testing.assert_allclose(target(self.x), expected, rtol=1e-6)

    def test_equal_modules_share_a_program(self):
        traced = []

        @jax.jit
        def program(target, x):
            traced.append(None)
            return target(x)

        for _ in range(2):
            program(Target.from_flax(Network(), self.variables), self.x)
        self.assertLen(traced, 1)

    def test_variables_without_parameters_are_refused(self):
        with self.assertRaisesRegex(ValueError, r"collection 'params'.+ got \['LayerNorm_0', "):
            Target.from_flax(self.module, self.variables["params"])


class TargetTest(absltest.TestCase):
    def test_is_a_pytree_of_its_parameters(self):
        target = Target(lambda p, x: x @ p["w"], {"w": jnp.eye(2)}, inputs=jnp.ones((1, 2)))
        doubled = jax.tree.map(lambda leaf: 2 * leaf, target)
        np.testing.assert_array_equal(doubled.weights["w"], 2 * np.eye(2))
        self.assertEqual(list(doubled.sites), ["w"])
        stacked = jax.vmap(lambda s: jax.tree.map(lambda leaf: s * leaf, target))(jnp.arange(3.0))
        self.assertEqual(stacked.params["w"].shape, (3, 2, 2))


if __name__ == "__main__":
    absltest.main()
