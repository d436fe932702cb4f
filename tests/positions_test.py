"""Positions along several axes: scores, masks and k of every pixel, against plain loops.

Letters: B examples, H, W axes of positions, C components.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from networks import normal

import apd_jax
from apd_jax import sites
from apd_jax.components import init_components
from apd_jax.errors import UserError
from apd_jax.masked import forward

B, C = 2, 3
FAST = {"num_components": 4, "rank": 1, "steps": 2, "refine": {"every": 0}}


def mixed(h):
    """A fixed mixing of neighbours in both axes."""
    return h + 0.5 * jnp.roll(h, 1, axis=1) - 0.3 * jnp.roll(h, 1, axis=2)


def pixels(p, x):
    """Two layers a pixel, whose neighbours meet in between."""
    return jnp.tanh(mixed(x @ p["a"])) @ p["b"]


def convolved(p, x):
    """The same with a convolution first, kernels one matrix [d, f] for every window."""
    numbers = ("NHWC", "HWIO", "NHWC")
    h = jax.lax.conv_general_dilated(x, p["a"], (1, 1), "SAME", dimension_numbers=numbers)
    return jnp.tanh(h) @ p["b"]


def flattened(p, x):
    """The same as `pixels`, rows of pixels written as one axis."""
    grid = x.shape[:-1]
    h = mixed((x.reshape(-1, x.shape[-1]) @ p["a"]).reshape(*grid, -1))
    return jnp.tanh(h) @ p["b"]


def case(apply_fn, height=3, width=2):
    """Target, components, inputs."""
    kernel = (2, 2, 3, 4) if apply_fn is convolved else (3, 4)
    params = {"a": normal(1, *kernel), "b": normal(2, 4, 2)}
    x = normal(3, B, height, width, 3)
    target = apd_jax.Target(apply_fn, params, inputs=x)
    return target, init_components(jax.random.key(0), target, num_components=C, rank=2), x


def rows_of(call):
    """What a use reads; of a convolution its patches."""
    return call.x.formed() if isinstance(call.x, sites.Patches) else call.x


def one_pixel(target, components, mask, x):
    """f with `Σ_c s_c(b, h, w) P_c` at every use, products by a matrix of each pixel's own."""

    def operation(call):
        matrices = components[call.key[0]].placed(call.placement).matrices()
        own = jnp.einsum("bhwc,cij->bhwij", mask, matrices)
        return jnp.einsum("bhwi,bhwij->bhwj", rows_of(call), own)

    return sites.run(target, x, operation, positions=True)[0]


class PositionsTest(parameterized.TestCase):
    @parameterized.parameters((pixels, 3, 2), (pixels, 3, 3), (convolved, 3, 2), (convolved, 3, 3))
    @pytest.mark.slow
    def test_attributions(self, apply_fn, height, width):
        target, components, x = case(apply_fn, height, width)

        @jax.jit
        def along(component, *place):
            """The derivative along one component at one pixel alone."""

            def outputs(amount):
                def operation(call):
                    here = jnp.zeros((height, width)).at[place].set(amount)
                    matrix = components[call.key[0]].placed(call.placement).matrices()[component]
                    added = jnp.einsum("bhwi,hw,ij->bhwj", rows_of(call), here, matrix)
                    return call.as_is() + added

                return sites.run(target, x, operation, positions=True)[0]

            return jax.jvp(outputs, (0.0,), (1.0,))[1]

        expected = np.zeros((B, height, width, C))
        for place in np.ndindex(height, width):
            for c in range(C):
                change = np.asarray(along(c, *place)).reshape(B, -1)
                expected[:, place[0], place[1], c] = np.sqrt(np.mean(change**2, axis=1))
        for mode in ("reverse", "literal"):
            scores = jax.jit(
                functools.partial(apd_jax.gradient_attributions, per_position=True, mode=mode)
            )(target, components, x)
            np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)

    @parameterized.parameters(pixels, convolved)
    def test_masks(self, apply_fn):
        target, components, x = case(apply_fn)
        mask = jnp.asarray(np.random.default_rng(0).random((B, 3, 2, C)) < 0.5)
        expected = jax.jit(one_pixel)(target, components, mask.astype(jnp.float32), x)
        actual = jax.jit(apd_jax.masked_apply)(target, components, x, mask)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
        pairs = np.nonzero(np.asarray(mask).reshape(-1, C))
        pairs = tuple(jnp.asarray(places, jnp.int32) for places in pairs)

        @jax.jit
        def of_pairs(pairs):
            operation = forward.masked_pairs(components, pairs, mask.shape[:-1])
            return sites.run(target, x, operation, positions=True)[0]

        actual = of_pairs(pairs)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)

    @parameterized.product(apply_fn=(pixels, convolved), height=(3, 4), order=((0, 3, 1, 2),))
    @pytest.mark.slow
    def test_channels_first(self, apply_fn, height, order):
        target, components, x = case(apply_fn, height)

        def turned(p, x):
            return apply_fn(p, jnp.transpose(x, np.argsort(order)))

        others = jnp.transpose(x, order)
        other = apd_jax.Target(turned, target.params, inputs=others)
        scores = functools.partial(apd_jax.gradient_attributions, per_position=True)
        np.testing.assert_allclose(
            scores(other, components, others), scores(target, components, x), rtol=1e-4, atol=1e-6
        )
        mask = jnp.asarray(np.random.default_rng(0).random((B, height, 2, C)) < 0.5)
        np.testing.assert_allclose(
            apd_jax.masked_apply(other, components, others, mask),
            apd_jax.masked_apply(target, components, x, mask),
            rtol=1e-4,
            atol=1e-6,
        )

    def test_positions_that_are_no_axis_of_the_inputs(self):
        def apply_fn(p, x):
            patches = x.reshape(len(x), 4, 3)  # fixed, so that no axis can be changed
            return jnp.tanh(patches @ p["a"]) @ p["b"]

        params = {"a": normal(1, 3, 4), "b": normal(2, 4, 2)}
        x = normal(3, B, 12)
        target = apd_jax.Target(apply_fn, params, inputs=x)
        components = init_components(jax.random.key(0), target, num_components=C, rank=2)
        flat = apd_jax.Target(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params)
        scores = functools.partial(apd_jax.gradient_attributions, per_position=True)
        expected = scores(flat.at(x.reshape(B, 4, 3)), components, x.reshape(B, 4, 3))
        np.testing.assert_allclose(scores(target, components, x), expected, rtol=1e-4, atol=1e-6)

    def test_rows_without_the_axes_are_refused(self):
        target, components, x = case(flattened)
        with self.assertRaisesRegex(UserError, "'a'.*no axes for the positions"):
            apd_jax.gradient_attributions(target, components, x, per_position=True)
        with self.assertRaisesRegex(UserError, r"mask has shape .*\[B, T, C\] = \(2, 3, 2, 3\)"):
            apd_jax.masked_apply(target, components, x, jnp.ones((B, 3, C), bool))

    @parameterized.parameters(((2, 6), 0.3, 3), ((2, 3, 4), 0.5, 12))
    @pytest.mark.slow
    def test_k_counts_positions(self, lead, k, expected):
        """Fewer than one component an example is no reason to refuse."""
        x = np.asarray(normal(0, 6, *lead[1:], 3))
        target = apd_jax.Target(lambda p, x: x @ p["a"], {"a": normal(1, 3, 4)})
        found = apd_jax.decompose(target, x, topk=k, batch_size=2, per_position=True, **FAST)
        mask = found.mask(x[:2])
        self.assertEqual((mask.shape, int(mask.sum())), ((*lead, 4), expected))
        places = found.top_examples(0, x).positions
        self.assertEqual(places.shape[1:], () if len(lead) == 2 else (2,))

    @parameterized.parameters((0.01, "selects nothing"), (5.0, r"at most num_components \(4\)"))
    def test_k_that_does_not_fit(self, k, message):
        x = np.asarray(normal(0, 6, 6, 3))
        target = apd_jax.Target(lambda p, x: x @ p["a"], {"a": normal(1, 3, 4)})
        with self.assertRaisesRegex(UserError, message):
            apd_jax.decompose(target, x, topk=k, batch_size=2, per_position=True, **FAST)


if __name__ == "__main__":
    absltest.main()
