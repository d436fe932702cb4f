"""The hand-coded network against the functions it codes, point by point."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from apd_jax.errors import UserError
from apd_jax.studies.gated_functions.network import GatedFunctions, GatedInputs, draw_waves, owners

pytestmark = pytest.mark.slow

SIZES = (
    dict(num_functions=4, neurons=10, num_layers=2),
    dict(num_functions=2, neurons=3, num_layers=1),
    dict(num_functions=3, neurons=5, num_layers=4, low=-2.0, high=1.0),
    dict(num_functions=1, neurons=2, num_layers=1),
)


def _params(task, seed):
    """The hand-coded weights of a seed, by one compiled program."""
    return jax.jit(task.init)(jax.random.key(seed))


def _waves(task, seed):
    """The functions that these weights code."""
    return draw_waves(jax.random.split(jax.random.key(seed))[0], task.num_functions)


@functools.lru_cache
def _compiled(task):
    """The target of a task as a function of its parameters and inputs, compiled once."""
    return jax.jit(lambda params, x: task.target(params)(x))


def _outputs(task, params, x, bits):
    """The target's output [B] on points x [B] with the given bits on."""
    row = jnp.zeros((len(x), task.num_functions)).at[:, bits].set(1.0)
    return _compiled(task)(params, jnp.concatenate([x[:, None], row], axis=1))[:, 0]


def _wave(waves, index, x):
    """One of the functions in numpy, by its formula."""
    a, b, c, d, e, f, g = (float(field[index]) for field in waves)
    return a * np.sin(b * x + c) + d * np.cos(e * x + f) + g


class NetworkTest(parameterized.TestCase):
    @parameterized.parameters(*SIZES)
    def test_interpolates_every_function_at_its_knots(self, **sizes):
        task = GatedFunctions(**sizes)
        params, waves = _params(task, 3), _waves(task, 3)
        knots = np.linspace(*task.domain, task.neurons)
        for i in range(task.num_functions):
            outputs = _outputs(task, params, jnp.asarray(knots, jnp.float32), [i])
            np.testing.assert_allclose(outputs, _wave(waves, i, knots), atol=1e-4)

    @parameterized.parameters(*SIZES)
    def test_is_linear_between_knots(self, **sizes):
        task = GatedFunctions(**sizes)
        params, waves = _params(task, 4), _waves(task, 4)
        knots = np.linspace(*task.domain, task.neurons)
        points = np.linspace(*task.domain, 57)
        outputs = _outputs(task, params, jnp.asarray(points, jnp.float32), [0])
        expected = np.interp(points, knots, _wave(waves, 0, knots))
        np.testing.assert_allclose(outputs, expected, atol=1e-4)

    @parameterized.parameters(*SIZES)
    def test_is_silent_while_bits_are_off(self, **sizes):
        task = GatedFunctions(**sizes)
        params = _params(task, 5)
        points = jnp.linspace(*task.domain, 101)
        np.testing.assert_array_equal(_outputs(task, params, points, []), 0.0)
        one = _outputs(task, params, points, [0])
        changed = {
            name: layer | {"mlp_out": {"kernel": layer["mlp_out"]["kernel"] * (own == 0)[:, None]}}
            for (name, layer), own in zip(params.items(), owners(params).values(), strict=True)
        }
        np.testing.assert_array_equal(_outputs(task, changed, points, [0]), one)

    def test_functions_add(self):
        task = GatedFunctions()
        params, points = _params(task, 6), jnp.linspace(0.0, 5.0, 51)
        apart = sum(_outputs(task, params, points, [i]) for i in range(4))
        together = _outputs(task, params, points, [0, 1, 2, 3])
        np.testing.assert_allclose(together, apart, atol=1e-4)

    def test_neurons_are_dealt_over_layers(self):
        task = GatedFunctions(num_functions=3, neurons=5, num_layers=2)
        dealt = owners(_params(task, 0))
        self.assertEqual([len(own) for own in dealt.values()], [8, 7])
        counts = np.bincount(np.concatenate(list(dealt.values())), minlength=3)
        np.testing.assert_array_equal(counts, 5)
        other = owners(_params(task, 1))
        self.assertFalse(all(np.array_equal(dealt[name], other[name]) for name in dealt))

    def test_every_weight_has_one_owner(self):
        task = GatedFunctions()
        params = _params(task, 2)
        self.assertSetEqual(
            set(task.target(params).sites),
            {f"layers_{i}/{name}/kernel" for i in (0, 1) for name in ("mlp_in", "mlp_out")},
        )
        for name, own in owners(params).items():
            kernel = np.asarray(params[name]["mlp_in"]["kernel"])
            np.testing.assert_array_equal(kernel[0], 1.0)
            np.testing.assert_array_equal(kernel[1:-1] == 100.0, own == np.arange(4)[:, None])
            np.testing.assert_array_equal((kernel[1:-1] != 0).sum(axis=0), 1)
            np.testing.assert_array_equal(params[name]["mlp_out"]["kernel"][:, :-1], 0.0)

    @parameterized.parameters(
        (dict(num_functions=0), "num_functions"),
        (dict(neurons=1), "neurons"),
        (dict(num_layers=41), "num_layers"),
        (dict(low=5.0), "low"),
        (dict(suppression=5.0), "suppression"),
        (dict(probability=0.0), "probability"),
    )
    def test_refuses(self, fields, name):
        with self.assertRaisesRegex(UserError, name):
            GatedFunctions(**fields)


class InputsTest(absltest.TestCase):
    def test_distribution(self):
        x = np.asarray(GatedInputs(3, 0.05, (-1.0, 4.0))(jax.random.key(0), 40_000))
        self.assertEqual(x.shape, (40_000, 4))
        self.assertTrue(((x[:, 0] >= -1) & (x[:, 0] < 4)).all())
        self.assertAlmostEqual(x[:, 0].mean(), 1.5, delta=0.03)
        self.assertTrue(np.isin(x[:, 1:], (0, 1)).all())
        np.testing.assert_allclose(x[:, 1:].mean(axis=0), 0.05, atol=0.004)


if __name__ == "__main__":
    absltest.main()
