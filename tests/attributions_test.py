"""Attributions three ways: forward mode, reverse mode and the literal definition.

The literal definition here is the Jacobian over the parameters themselves, contracted with
components that are formed as matrices.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax import sites
from apd_jax.attribution import METHODS, Options, division, gradient, pushforward, routes
from apd_jax.attribution.pushforward import Tangent
from apd_jax.components import Factors
from apd_jax.programs.counts import operations
from apd_jax.sites import Target

MODES = ("forward", "reverse", "literal", "auto")


def close(actual, expected, rtol=1e-5):
    """Equal to a tolerance relative to the largest entry."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


@functools.partial(jax.jit, static_argnums=3)
def every_way(target, components, x, source):
    """Attributions by every route and by the literal definition, in one program."""
    routes = {
        mode: apd_jax.gradient_attributions(target, components, x, mode=mode, source=source)
        for mode in MODES
    }
    return routes, networks.literal_attributions(target, components, x, source)


def sequence_apply(params, x):
    """A network on [B, T, d]: a map at every place, products, sums, a mean over places."""
    h = x @ params["a"] + params["shift"]
    h = jax.nn.relu(h) * x - h / 3 + jnp.roll(h, 1, axis=1)
    h = h @ params["fixed"] + h @ params["fixed"].T
    h = h / jnp.sqrt(1 + jnp.sum(h**2, axis=-1, keepdims=True))
    return jnp.mean(h, axis=1) @ params["b"] * 2 - 1


def sequence_network():
    params = {
        "a": networks.normal(0, 3, 3),
        "b": networks.normal(1, 3, 2),
        "shift": networks.normal(2, 3),
        "fixed": networks.normal(3, 3, 3),
    }
    x = networks.normal(4, 6, 4, 3)
    return Target(sequence_apply, params, ["a", "b"], inputs=x), x


class GradientAttributionsTest(parameterized.TestCase):
    @parameterized.product(name=networks.NAMES, source=("target", "components"))
    @pytest.mark.slow
    def test_routes_agree_with_the_jacobian_over_parameters(self, name, source):
        target, x = networks.make(name)
        components = networks.components(target)
        found, expected = every_way(target, components, x, source)
        self.assertGreater(np.mean(expected > 0), 0.5)
        for scores in found.values():
            close(scores, expected)

    @parameterized.parameters("target", "components")
    def test_sequences(self, source):
        target, x = sequence_network()
        components = networks.components(target)
        found, expected = every_way(target, components, x, source)
        for scores in found.values():
            close(scores, expected)

    def test_gives_the_pass_that_was_linearised(self):
        target, x = networks.make("tms")
        components = networks.components(target)
        sums = {site: m.sum(axis=0) for site, m in networks.matrices(components).items()}
        for source, weights in (("target", target.weights), ("components", sums)):
            at = jax.jit(functools.partial(gradient.attribute, options=Options(source=source)))(
                target, components, x
            )
            close(at.outputs, networks.output(target, weights, x))
            close(at.records["linear1/kernel", 0].y, x @ weights["linear1/kernel"])

    def test_dead_component_has_attribution_and_gradient_zero(self):
        target, x = networks.make("mlp")
        components = jax.tree.map(lambda leaf: leaf.at[1].set(0), networks.components(target))

        def total(components):
            scores = apd_jax.gradient_attributions(target, components, x)
            return jnp.sum(scores), scores

        with jax.debug_nans(True):
            gradient, scores = jax.jit(jax.grad(total, has_aux=True))(components)
        np.testing.assert_array_equal(scores[:, 1], np.zeros(len(x)))
        self.assertGreater(float(scores[:, 0].min()), 0)
        for factors in gradient.values():
            np.testing.assert_array_equal(factors.reads[1], np.zeros_like(factors.reads[1]))

    def test_blocks_of_a_large_batch(self):
        target = networks.tms(features=40, hidden=3)
        components = networks.components(target, num_components=50, rank=1)
        x = jnp.maximum(networks.normal(7, 512, 40), 0)
        self.assertEqual(division.num_batch_blocks(512, 50 * 40), 2)
        attribute = jax.jit(gradient.attribute)
        whole = attribute(target, components, x)
        parts = [attribute(target, components, part) for part in (x[:256], x[256:])]
        close(whole.scores, jnp.concatenate([part.scores for part in parts]))
        close(whole.outputs, target(x))
        close(whole.records["linear1/kernel", 1].x, x @ target.weights["linear1/kernel"])

    @parameterized.parameters("forward", "reverse")
    @pytest.mark.slow
    def test_shares_of_many_components(self, mode):
        target = networks.tms(features=40, hidden=3)
        components = networks.components(target, num_components=60, rank=1)
        x = jnp.maximum(networks.normal(7, 500, 40), 0)
        self.assertEqual(division.num_shares(components, x.size), 2)

        def total(components, weights):
            found = gradient.attribute(target, components, x, Options(mode))
            return jnp.sum(found.scores * weights), found

        measure = jax.jit(jax.value_and_grad(total, has_aux=True))
        weights = networks.normal(8, 500, 60)
        (_, whole), slopes = measure(components, weights)
        for part in (slice(30), slice(30, 60)):
            half = jax.tree.map(lambda leaf, part=part: leaf[part], components)
            (_, found), expected = measure(half, weights[:, part])
            close(whole.scores[:, part], found.scores)
            cut = jax.tree.map(lambda leaf, part=part: leaf[part], slopes)
            chex.assert_trees_all_close(cut, expected, rtol=1e-3, atol=1e-3)
        close(whole.outputs, target(x))

    @parameterized.parameters(
        ((60, 3000), 1),  # small
        ((60, 20_000), 2),
        ((61, 20_000), 1),  # a prime number
        ((200, 20_000), 8),
        ((2, 2_000_000), 1),  # a share is no less than a component
    )
    def test_number_of_shares(self, sizes, expected):
        num_components, outputs = sizes
        components = networks.components(networks.tms(), num_components=num_components)
        self.assertEqual(division.num_shares(components, outputs), expected)

    def test_wide_factors_are_not_cut(self):
        components = networks.components(
            networks.tms(features=2000, hidden=20), num_components=60, rank=20
        )
        self.assertEqual(division.num_shares(components, 20_000), 1)

    @parameterized.parameters(
        (1, 4, 64, 4 * 64 + 4),  # the direction meets V: [B, C, m] is all that is kept
        (100, 50, 60, (50 + 100) * 60),  # what components write meets all directions
        (40, 11, 40, (11 + 40) * 40),
        (6, 1, 30, 6 * 30 + 6),
    )
    def test_directions_meet_factors_the_cheaper_way(self, count, rank, width, expected):
        """Multiply-adds for each example and component, behind those that read the input."""
        weights = {"w": jnp.zeros((3, width))}
        target = Target(lambda p, x: x @ p["w"], weights, inputs=jnp.zeros((2, 3)))
        components = {"w": Factors.from_uv(jnp.zeros((5, 3, rank)), jnp.zeros((5, rank, width)))}
        at = routes.linearise(target, jnp.zeros((2, 3)), "rms")
        pulled = jnp.zeros((count, 2, width))
        found = operations(functools.partial(routes.along_directions, at), components, pulled)
        self.assertEqual(found, 2 * 2 * 5 * (3 * rank + expected))

    def test_auto_takes_the_cheaper_route(self):
        target, x = networks.make("mlp")  # with 2 outputs
        at = routes.linearise(target, x, "rms")
        for count, expected in ((1, "forward"), (30, "reverse")):
            components = networks.components(target, num_components=count)
            self.assertEqual(routes.cheaper(at, components, 2), expected)

    @parameterized.parameters(
        ({"mode": "backward"}, "mode must be one of .+'forward'.+ got 'backward'"),
        ({"source": "sum"}, "source must be one of .+, got 'sum'"),
    )
    def test_bad_choice(self, arguments, message):
        target, x = networks.make("mlp")
        with self.assertRaisesRegex(ValueError, message):
            apd_jax.gradient_attributions(target, networks.components(target), x, **arguments)

    def test_components_that_do_not_fit(self):
        target, x = networks.make("mlp")
        fit = networks.components(target)
        other = networks.components(target, num_components=4)
        tall = Factors(fit["first/w"].writes, fit["first/w"].reads)
        cases = (
            ({"first/w": fit["first/w"]}, r"sites \['first/w'\], the target's are"),
            (fit | {"second/w": other["second/w"]}, r"number of components: \[3, 4\]"),
            (fit | {"first/w": tall}, r"'first/w' has a matrix \(3, 5\), its factors are U"),
        )
        functions = (
            apd_jax.gradient_attributions,
            apd_jax.ablation_attributions,
            apd_jax.activation_attributions,
        )
        for components, message in cases:
            for function in functions:
                with self.assertRaisesRegex(ValueError, message):
                    function(target, components, x)


class MetricTest(absltest.TestCase):
    def test_batch_that_is_not_in_front(self):
        """With as many outputs as examples too, where shapes alone don't tell."""
        target, x = networks.make("mlp")
        components = networks.components(target)
        width = networks.output(target, target.weights, x).shape[1]
        metrics = (lambda y: y.T, lambda y: y.sum(axis=0), lambda y: y.mean())
        for metric in metrics:
            for inputs in (x[:width], x[: width - 1]):
                with self.assertRaisesRegex(ValueError, "the metric must return arrays"):
                    apd_jax.gradient_attributions(target, components, inputs, metric=metric)


class OtherAttributionsTest(parameterized.TestCase):
    @parameterized.parameters(jnp.bfloat16, jnp.float16)
    def test_scores_of_outputs_of_half_precision_are_not_rounded_again(self, dtype):
        def half(params, x):
            return networks.mlp_apply(params, x).astype(dtype)

        x = networks.normal(5, 7, 3)
        target = Target(half, networks.mlp().params, inputs=x)
        components = networks.components(target)
        for scores in (
            apd_jax.gradient_attributions(target, components, x, mode="forward"),
            apd_jax.ablation_attributions(target, components, x),
        ):
            self.assertEqual(scores.dtype, jnp.float32)
            self.assertTrue(np.any(scores.astype(dtype) != scores))

    @parameterized.parameters(*networks.NAMES)
    def test_ablation(self, name):
        target, x = networks.make(name)
        components = networks.components(target)
        parts = networks.matrices(components)

        def change(c):
            kept = {site: m.sum(axis=0) - m[c] for site, m in parts.items()}
            whole = {site: m.sum(axis=0) for site, m in parts.items()}
            difference = networks.output(target, whole, x) - networks.output(target, kept, x)
            return jnp.mean(difference**2, axis=1)

        found = jax.jit(apd_jax.ablation_attributions)(target, components, x)
        close(found, jnp.stack([change(c) for c in range(3)], axis=1))

    def test_ablation_by_other_metrics(self):
        target, x = networks.make("mlp")
        components = networks.components(target)
        sums = {site: m.sum(axis=0) for site, m in networks.matrices(components).items()}
        logits = networks.output(target, sums, x)
        p = jax.nn.softmax(logits)
        for c in range(3):
            kept = {s: sums[s] - m[c] for s, m in networks.matrices(components).items()}
            t = logits - networks.output(target, kept, x)
            fisher = (p * t**2).sum(axis=1) - (p * t).sum(axis=1) ** 2
            ablate = apd_jax.ablation_attributions
            close(ablate(target, components, x, "fisher")[:, c], fisher)
            first = ablate(target, components, x, lambda y: y[:, :1])
            close(first[:, c], t[:, 0] ** 2)
        with self.assertRaisesRegex(ValueError, "activation_attributions has no metric but 'rms'"):
            METHODS["activation"](target, components, x, Options(metric="fisher"))

    def test_ablation_of_a_class_that_is_ruled_out(self):
        plain, x = networks.make("mlp")
        components = networks.components(plain)
        apply = plain.apply_fn

        def ruled_out(params, inputs):
            return apply(params, inputs).at[:, 0].set(-jnp.inf)

        def zeroed(params, inputs):
            return apply(params, inputs).at[:, 0].set(0.0)

        found, expected = (
            apd_jax.ablation_attributions(
                apd_jax.Target(function, plain.params, inputs=x), components, x
            )
            for function in (ruled_out, zeroed)
        )
        close(found, expected)

    @parameterized.parameters("tms_hidden", "sequence")
    def test_activation(self, name):
        target, x = sequence_network() if name == "sequence" else networks.make(name)
        components = networks.components(target)
        parts = networks.matrices(components)
        sums = {site: m.sum(axis=0) for site, m in parts.items()}
        _, records = sites.run(target.with_weights(sums), x, sites.as_is)
        expected = np.zeros((len(x), 3))
        for record in records.values():
            for c, part in enumerate(parts[record.name]):
                squares = np.square(record.x @ (part.T if record.placement.transposed else part))
                expected[:, c] += squares.reshape(len(x), -1).sum(axis=1)
        close(jax.jit(apd_jax.activation_attributions)(target, components, x), expected)


class TermTest(parameterized.TestCase):
    """Both sides that a fixed matrix can be multiplied into."""

    @parameterized.parameters((1, 50), (50, 1))
    def test_times(self, batch, rank):
        coefficients, basis = networks.normal(0, 2, rank, batch), networks.normal(1, 2, rank, 3)
        matrix = networks.normal(2, 3, 4)
        term = Tangent(coefficients, basis).times(matrix)
        self.assertEqual(term.basis.shape[0], 1 if rank > batch else 2)
        expected = np.einsum("crb,crd,de->ceb", coefficients, basis, matrix)
        np.testing.assert_allclose(term.dense(), expected, rtol=1e-4, atol=1e-4)
        again = term.times(networks.normal(3, 4, 2)).scale(-2.0).dense()
        expected = -2 * np.einsum("ceb,ef->cfb", expected, networks.normal(3, 4, 2))
        np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-3)

    def test_linear_map_with_rules_and_without(self):
        weights, gate = networks.normal(0, 3, 3), networks.normal(1, 5, 3)

        def linear_map(taps):
            a, b = taps["a"] @ weights, taps["b"]
            picked = jnp.where(gate > 0, a, -b)
            turned = jnp.einsum("bi,ji->bj", a, weights)
            return jnp.cumsum(picked * gate, axis=1) + (a - b * 3.0) / 2 - turned

        zeros = {"a": jnp.zeros((5, 3)), "b": jnp.zeros((5, 3))}
        terms = {
            name: Tangent(networks.normal(i, 4, 2, 5), networks.normal(i + 9, 4, 2, 3))
            for i, name in enumerate(("a", "b"))
        }
        found = jax.jit(lambda t: pushforward.push_forward(linear_map, zeros, t))(terms)
        dense = {name: jnp.swapaxes(term.dense(), 1, 2) for name, term in terms.items()}
        expected = jnp.swapaxes(jax.jit(jax.vmap(linear_map))(dense), 1, 2)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    absltest.main()
