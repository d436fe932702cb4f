"""The rows of convolutions: products with them are those of the patches, which are not formed."""

import math

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from jax.extend import core

import apd_jax
from apd_jax.objective.coefficients import Coefficients, Routes
from apd_jax.objective.objective import Objective
from apd_jax.sites.patches import Patches, Window

B, C, RANK = 3, 4, 2
WINDOWS = {
    "1d": (Window((3,), (2,), ((1, 1),), (1,), (1,), 1), (4, 7), (0, 1)),
    "strides": (Window((2, 3), (2, 1), ((0, 0), (2, 1)), (1, 1), (1, 1), 1), (2, 5, 4), (0, 2, 1)),
    "dilated": (Window((2, 2), (1, 1), ((1, 1),) * 2, (1, 1), (2, 3), 1), (2, 5, 5), (0, 1, 2)),
    "transposed": (Window((3, 3), (1, 1), ((2, 1),) * 2, (2, 2), (1, 1), 1), (2, 3, 3), (0, 1, 2)),
    "groups": (Window((3, 2), (1, 2), ((1, 0),) * 2, (1, 1), (1, 1), 2), (4, 4, 5), (0, 2, 1)),
    "depthwise": (Window((3,), (1,), ((2, 0),), (1,), (1,), 5), (5, 6), (0, 1)),
    "3d": (Window((2, 1, 2), (1, 1, 2), ((0, 0),) * 3, (1,) * 3, (1,) * 3, 1), (2, 3, 3, 4), None),
}


def convolutional(p, x):
    """A small network for images [B, H, W, 3]."""
    numbers = ("NHWC", "HWIO", "NHWC")
    h = jax.lax.conv_general_dilated(x, p["a"], (1, 1), "SAME", dimension_numbers=numbers)
    h = jax.lax.conv_general_dilated(
        jax.nn.relu(h), p["b"], (2, 2), "SAME", dimension_numbers=numbers
    )
    return jax.nn.relu(h).mean((1, 2)) @ p["out"]


def largest(jaxpr):
    """Numbers of the largest array that a program computes, programs inside included."""
    sizes = [1]
    for eqn in jaxpr.eqns:
        sizes += [math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars]
        sizes += [largest(inner) for inner in core.jaxprs_in_params(eqn.params)]
    return max(sizes)


class PatchesTest(parameterized.TestCase):
    @parameterized.product(name=list(WINDOWS), several=[False, True])
    def test_read_is_the_product_with_patches(self, name, several):
        window, shape, order = WINDOWS[name]
        lead = (B,) if not several else (1, B)  # images of one example, too
        images = networks.normal(0, *lead, *shape)
        patches = Patches(images, window, order or tuple(range(1 + len(window.shape))))
        stack = (window.groups,) if window.groups > 1 else ()
        reads = networks.normal(1, C, *stack, RANK, patches.shape[-1])
        formed, found = jax.jit(lambda p, reads: (p.formed(), p.read(reads)))(patches, reads)
        self.assertEqual(patches.shape, formed.shape)
        self.assertEqual(len(formed), lead[0])
        pattern = "...gd,cgmd->...gcm" if stack else "...d,cmd->...cm"
        expected = np.einsum(pattern, formed, reads)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    @parameterized.parameters("sketch", "reverse", "pairs")
    def test_no_array_has_the_size_of_the_patches(self, route):
        shapes = {"a": (3, 3, 8, 8), "b": (5, 5, 8, 6), "out": (6, 3)}
        params = {n: networks.normal(i, *s) for i, (n, s) in enumerate(shapes.items())}
        x = networks.normal(9, 16, 12, 12, 8)
        target = apd_jax.Target(convolutional, params, inputs=x[:2])
        own = apd_jax.init_components(jax.random.key(0), target, num_components=C, rank=RANK)
        routes = {
            "sketch": Routes("sketch", num_probes=1, masked_route="dense"),
            "reverse": Routes("reverse", masked_route="dense"),
            "pairs": Routes("sketch", num_probes=1, masked_route="grouped"),
        }
        objective = Objective(
            Coefficients(minimality=1, faithfulness=1), topk=1.0, routes=routes[route]
        )

        def loss(components):
            terms, _ = objective.terms(target, components, x, jax.random.key(1))
            return objective.total(terms)

        found = largest(jax.make_jaxpr(jax.value_and_grad(loss))(own).jaxpr)
        self.assertLess(found, 16 * 12 * 12 * 9 * 8 / 2)

    @parameterized.parameters(True, False)
    @pytest.mark.slow
    def test_frames_of_examples(self, batched):
        """Frames merged with the examples, and examples along an axis of the images."""
        params = {"a": networks.normal(0, 3, 2, 4), "out": networks.normal(1, 4, 3)}

        def merged(p, x):  # [B, frames, length, channels]
            numbers = ("NWC", "WIO", "NWC")
            h = x.reshape(-1, *x.shape[2:])
            h = jax.lax.conv_general_dilated(h, p["a"], (2,), "SAME", dimension_numbers=numbers)
            return jnp.tanh(h).reshape(*x.shape[:2], *h.shape[1:]).mean((1, 2)) @ p["out"]

        def beside(p, x):  # [B, frames, length, channels], examples beside the length
            numbers = ("NHWC", "HWIO", "NHWC")
            h = jnp.transpose(x, (1, 2, 0, 3))
            kernel = p["a"][:, None]
            h = jax.lax.conv_general_dilated(h, kernel, (2, 1), "SAME", dimension_numbers=numbers)
            return jnp.tanh(h).mean((0, 1)) @ p["out"]

        x = networks.normal(2, B, 2, 5, 2)
        apply_fn = beside if batched else merged
        target = apd_jax.Target(apply_fn, params, inputs=x)
        own = apd_jax.init_components(jax.random.key(0), target, num_components=C, rank=RANK)
        scores = jax.jit(apd_jax.gradient_attributions, static_argnames="mode")
        found = [scores(target, own, x, mode=mode) for mode in ("literal", "forward", "reverse")]
        np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found[2], found[0], rtol=1e-4, atol=1e-6)
        mask = jnp.asarray(np.random.default_rng(0).random((B, C)) < 0.5)
        expected = networks.literal_masked(target, own, x, mask)
        masked = jax.jit(apd_jax.masked_apply)(target, own, x, mask)
        np.testing.assert_allclose(masked, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_pairs_of_convolutions_have_the_gradients_of_masks(self):
        shapes = {"a": (3, 3, 2, 4), "b": (2, 2, 4, 3), "out": (3, 3)}
        params = {n: networks.normal(i, *s) for i, (n, s) in enumerate(shapes.items())}
        x = networks.normal(9, 24, 5, 4, 2)
        target = apd_jax.Target(convolutional, params, inputs=x[:2])
        own = apd_jax.init_components(jax.random.key(0), target, num_components=C, rank=RANK)

        def gradient(route):
            objective = Objective(
                Coefficients(minimality=1), topk=1.5, routes=Routes(masked_route=route)
            )

            def loss(components):
                return objective.terms(target, components, x)[0]["minimality"]

            return jax.jit(jax.value_and_grad(loss))(own)

        chex.assert_trees_all_close(gradient("dense"), gradient("grouped"), rtol=1e-3, atol=1e-5)


if __name__ == "__main__":
    absltest.main()
