"""Schedules of coefficients and k against their formulas, and in a step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
from absl.testing import absltest, parameterized

from apd_jax.components import init_components
from apd_jax.decomposition.result import Decomposition
from apd_jax.errors import UserError
from apd_jax.objective import selection
from apd_jax.objective.coefficients import CONSTANT, Coefficients, Multipliers
from apd_jax.objective.objective import Objective
from apd_jax.training import schedules
from apd_jax.training.config import Settings
from apd_jax.training.schedules import Schedules


class FactorTest(parameterized.TestCase):
    @parameterized.parameters(
        ("constant", [1, 1, 1]),
        ("linear", [1, 0.5, 0.1]),
        ("cosine", [1, np.cos(5 / 18 * np.pi), 0]),
        ("exponential", [1, 0.25, 2 ** (-18 / 5)]),
        ("0:1 0.5:1 1:0", [1, 1, 0.2]),
        ("0.5:0.4", [0.4, 0.4, 0.4]),
        ("0.2:0 0.7:1", [0, 0.6, 1]),
    )
    def test_shapes(self, schedule, expected):
        at = jax.jit(schedules.factor(schedule, 10, halflife=2.5))
        steps = jnp.array([0.0, 5.0, 9.0])
        np.testing.assert_allclose(jax.vmap(at)(steps), expected, atol=1e-6)

    @parameterized.parameters("cubic", "", "0:1 1", "0.5:1 0.2:0", "0:1 1.5:0", "0:-1", "1")
    def test_refuses(self, schedule):
        with self.assertRaisesRegex(UserError, "schedule must be one of"):
            schedules.factor(schedule, 10)

    def test_names_the_field(self):
        with self.assertRaisesRegex(UserError, "simplicity: schedule must"):
            Schedules(simplicity="up")

    @parameterized.parameters(("0:4 0.4:1", 8), ("0:3 0.5:1", 10), ("0:11 1:1", 7), ("0:7 1:3", 5))
    def test_factors_of_k_above_one(self, schedule, k):
        """Steps select with the largest k, and parts of it that are the same products."""
        given = Schedules(topk=schedule)
        largest = given.largest_of_k()
        divided = given.with_k_divided(largest)
        self.assertEqual(divided.largest_of_k(), 1)
        self.assertEqual(Schedules().largest_of_k(), 1)
        for step in range(11):
            factor, part = (s.multipliers(jnp.int32(step), 10)[0] for s in (given, divided))
            np.testing.assert_allclose(largest * part, factor, rtol=1e-6)
            whole = round(float(k * factor), 3)
            if whole.is_integer():
                self.assertEqual(int(np.float32(k * largest) * part), whole)

    def test_settings_of_the_steps(self):
        given = Settings(Objective(topk=2.0), 8, schedules=Schedules(topk="0:4 0.4:1"))
        steps = given.with_largest_k()
        self.assertEqual((steps.objective.topk, steps.schedules.topk), (8, "0.0:1.0 0.4:0.25"))
        self.assertEqual([s.objective_at_end.topk for s in (given, steps)], [2, 2])
        self.assertIs(steps.with_largest_k(), steps)
        with self.assertRaisesRegex(UserError, "got 8.*'0:4 0.4:1' multiplies 2.0; lower"):
            dataclasses.replace(given, num_components=7)

    def test_only_what_moves_has_a_factor(self):
        schedules = Schedules(simplicity="linear", topk="0:1 1:0.5")
        topk, losses = schedules.multipliers(jnp.int32(5), 10)
        self.assertEqual(list(losses), ["simplicity"])
        np.testing.assert_allclose([losses["simplicity"], topk], [0.5, 0.75])
        self.assertEqual(Schedules().multipliers(jnp.int32(5), 10), CONSTANT)


@functools.cache
def scores_with_ties():
    return jnp.round(jnp.abs(networks.normal(0, 12, 5)), 1).at[3].set(0)


batch_topk = jax.jit(selection.batch_topk, static_argnums=1)
sample_part = jax.jit(selection.sample_topk, static_argnums=1)


class PartOfKTest(parameterized.TestCase):
    @parameterized.parameters(0.0, 0.1, 0.26, 0.5, 0.999, 1.0)
    def test_is_the_top_k_of_that_k(self, factor):
        scores = scores_with_ties()
        chosen = batch_topk(scores, 1.5, None, jnp.float32(factor))
        count = max(int(np.floor(np.float32(factor) * 1.5 * 12)), 1)
        expected = batch_topk(scores, count / 12 + 1e-6)
        np.testing.assert_array_equal(chosen.mask, expected.mask)
        self.assertIsNone(chosen.pairs)

    @parameterized.parameters(0.0, 0.2, 0.34, 0.67, 1.0)
    def test_of_every_sample(self, factor):
        scores = scores_with_ties().at[5, 1:].set(jnp.nan)
        chosen = sample_part(scores, 3, jnp.float32(factor))
        count = max(int(np.floor(np.float32(factor) * np.float32(3))), 1)
        np.testing.assert_array_equal(chosen.mask, sample_part(scores, count).mask)
        rows, components = chosen.pairs
        places = np.zeros((12, 6), bool)
        places[rows, components] = True
        np.testing.assert_array_equal(places[:, :5], chosen.mask)
        settings = Settings(
            Objective(topk=3, selection="sample"),
            num_components=5,
            schedules=Schedules(topk=f"0:1 1:{factor}"),
        )
        self.assertEqual(settings.objective_at_end.topk, count)

    def test_in_the_objective(self):
        target, x = networks.make("tms")
        components = init_components(jax.random.key(0), target, num_components=4)
        objective = Objective(Coefficients(1.0, 1.0, 0.5), topk=2.0)

        @functools.partial(jax.jit, static_argnums=0)
        def terms_of(objective, components, multipliers=CONSTANT):
            return objective.terms(target, components, x, multipliers=multipliers)

        for factor in (0.5, 1.0):
            multipliers = Multipliers(jnp.float32(factor), {"simplicity": 0.25})
            terms, chosen = terms_of(objective, components, multipliers)
            literal = dataclasses.replace(objective, topk=2.0 * factor)
            expected, plain = terms_of(literal, components)
            np.testing.assert_array_equal(chosen.mask, plain.mask)
            for name, value in terms.items():
                np.testing.assert_allclose(value, expected[name], rtol=1e-5)
            np.testing.assert_allclose(
                objective.total(terms, multipliers),
                terms["faithfulness"] + terms["minimality"] + 0.125 * terms["simplicity"],
                rtol=1e-6,
            )

    def test_what_is_seen_after_training_is_the_k_of_its_end(self):
        target, x = networks.make("tms")
        settings = Settings(
            Objective(topk=2.0), num_components=4, steps=10, schedules=Schedules(topk="0:1 1:0.5")
        )
        self.assertEqual(settings.objective_at_end.topk, 1.0)
        components = init_components(jax.random.key(0), target, num_components=4)
        mask = Decomposition(target, components, settings).mask(x)
        self.assertEqual(int(mask.sum()), len(x))

    @parameterized.parameters(
        ({"selection": "exact", "topk": 2}, "0:1 1:0.5", "schedules.topk needs a topk"),
        (
            {"topk": None, "coefficients": Coefficients()},
            "0:1 1:0.5",
            "schedules.topk needs a topk",
        ),
        ({"topk": 2.0}, "linear", "topk does not fit batch_size"),
    )
    def test_refuses_what_has_no_such_k(self, objective, schedule, message):
        with self.assertRaisesRegex(UserError, message):
            Settings(Objective(**objective), num_components=4, schedules=Schedules(topk=schedule))


if __name__ == "__main__":
    absltest.main()
