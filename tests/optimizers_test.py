"""Learning-rate schedules against closed forms, and Adam against its recurrence."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from apd_jax.training import optimizers

STEPS = 50


def rates(warmup_fraction=0.0, **options):
    schedule = optimizers.learning_rate_schedule(
        0.3, steps=STEPS, warmup_fraction=warmup_fraction, **options
    )
    return np.asarray(schedule(np.arange(STEPS)))


class ScheduleTest(parameterized.TestCase):
    @parameterized.product(
        shape=("constant", "linear", "cosine", "exponential"), warmup_fraction=(0.0, 0.05, 0.5)
    )
    def test_closed_forms(self, shape, warmup_fraction):
        warmup = int(STEPS * warmup_fraction)
        remaining = STEPS - warmup
        t = np.arange(remaining)
        factor = {
            "constant": np.ones(remaining),
            "linear": 1 - t / remaining,
            "cosine": np.cos(np.pi / 2 * t / (remaining - 1)),
            "exponential": 0.5 ** (t / 7),
        }[shape]
        expected = 0.3 * np.concatenate([np.arange(warmup) / max(warmup, 1), factor])
        found = rates(
            warmup_fraction, schedule=shape, halflife=7 if shape == "exponential" else None
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)

    def test_cosine_is_a_quarter_wave(self):
        found = rates(schedule="cosine")
        self.assertAlmostEqual(found[-1], 0.0, places=7)
        middle = optimizers.learning_rate_schedule(1.0, steps=3, schedule="cosine")(1)
        self.assertAlmostEqual(float(middle), np.sqrt(0.5), places=6)  # half a wave: 0.5

    def test_warmup_begins_at_zero(self):
        np.testing.assert_allclose(rates(0.1)[:6], [0, 0.06, 0.12, 0.18, 0.24, 0.3], rtol=1e-6)

    @parameterized.parameters("constant", "linear", "cosine")
    def test_single_step(self, shape):
        schedule = optimizers.learning_rate_schedule(0.3, steps=1, schedule=shape)
        self.assertAlmostEqual(float(schedule(0)), 0.3, places=6)

    def test_traced_step(self):
        schedule = optimizers.learning_rate_schedule(0.3, steps=STEPS, schedule="linear")
        found = jax.jit(schedule)(jnp.int32(25))
        self.assertEqual(found.dtype, jnp.float32)
        self.assertAlmostEqual(float(found), 0.15, places=6)

    @parameterized.parameters(
        ({"peak": 0.0}, "learning_rate must be positive and finite, got 0.0"),
        ({"peak": float("nan")}, "learning_rate must be positive and finite, got nan"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"warmup_fraction": 1.0}, r"warmup_fraction must be in \[0, 1\), got 1.0"),
        ({"warmup_fraction": -0.1}, r"warmup_fraction must be in \[0, 1\), got -0.1"),
        ({"schedule": "cosin"}, "schedule must be one of .+'cosine'.+, got 'cosin'"),
        ({"schedule": "exponential"}, "needs a positive halflife, got None"),
        ({"schedule": "exponential", "halflife": 0.0}, "needs a positive halflife, got 0.0"),
    )
    def test_bad_arguments(self, arguments, message):
        arguments = {"peak": 0.1, "steps": 10} | arguments
        with self.assertRaisesRegex(ValueError, message):
            optimizers.learning_rate_schedule(arguments.pop("peak"), **arguments)


class AdamTest(parameterized.TestCase):
    @parameterized.parameters(0.0, 0.1)
    def test_recurrence(self, decay):
        rate = optimizers.learning_rate_schedule(0.1, steps=4, schedule="linear")
        optimizer = optimizers.adam(rate, weight_decay=decay)
        parameter = jnp.array([1.0, -2.0])
        state = optimizer.init(parameter)
        expected, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
        update = jax.jit(optimizer.update)
        for step, g in enumerate(np.array([[0.3, 1e-9], [-1.0, 2.0], [0.0, 0.5]])):
            change, state = update(jnp.array(g, jnp.float32), state, parameter)
            parameter = parameter + change
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            direction = (m / (1 - 0.9 ** (step + 1))) / (
                np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8
            )
            expected = expected - 0.1 * (1 - step / 4) * (direction + decay * expected)
            np.testing.assert_allclose(parameter, expected, rtol=1e-4)


class DecompositionOptimizerTest(parameterized.TestCase):
    def test_a_relative_rate_is_one_of_each_leaf_in_its_own_unit(self):
        def run(unit):
            optimizer = optimizers.decomposition_optimizer(lambda step: 0.1, relative=True)
            leaves = {"a": jnp.array([3.0, -4.0]) * unit, "b": jnp.array([[1.0, 0.0]])}
            state, seen = optimizer.init(leaves), []
            for step in range(3):
                gradient = jax.tree.map(lambda leaf, s=step: jnp.cos(leaf + s), {**leaves})
                gradient["a"] = jnp.cos(leaves["a"] / unit + step) / unit
                before = leaves
                leaves, state, _ = optimizer.step(gradient, state, before)
                seen.append(jax.tree.map(jnp.subtract, leaves, before))
            return seen

        once, in_other_units = run(1.0), run(100.0)
        rms = np.sqrt(12.5)
        np.testing.assert_allclose(np.abs(once[0]["a"]), 0.1 * rms * np.ones(2), rtol=1e-5)
        for one, other in zip(once, in_other_units, strict=True):
            np.testing.assert_allclose(100 * one["a"], other["a"], rtol=1e-5)
            np.testing.assert_array_equal(one["b"], other["b"])

    def test_leaves_of_zeros_learn(self):
        optimizer = optimizers.decomposition_optimizer(lambda step: 0.1, relative=True)
        zeros = {"a": jnp.zeros((2, 2))}
        after, _, _ = optimizer.step({"a": jnp.ones((2, 2))}, optimizer.init(zeros), zeros)
        self.assertGreater(float(jnp.abs(after["a"]).min()), 0)


if __name__ == "__main__":
    absltest.main()
