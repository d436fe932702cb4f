"""What may be minimised, and which components each rule selects."""

import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from apd_jax.errors import UserError
from apd_jax.objective.coefficients import Coefficients, Routes
from apd_jax.objective.objective import Objective

TOPK = Objective(Coefficients(faithfulness=1, minimality=1, simplicity=0.5), topk=1.3)


class SelectTest(parameterized.TestCase):
    scores = jnp.array([[0.1, 0.9, 0.2, 5.0], [0.3, 0.8, 0.0, 6.0], [0.0, 0.7, 0.6, 7.0]])
    x = jnp.array([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]])

    @parameterized.parameters(
        ("batch", 1.4, False, [[0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]]),
        ("sample", 2.0, False, [[0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 0, 1]]),
        ("exact", None, False, [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]]),
        ("batch", 1.4, True, [[0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 1, 1]]),
        ("sample", 1.0, True, [[0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 0, 1]]),
        ("exact", None, True, [[0, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1]]),
        ("batch", None, False, [[1, 1, 1, 1]] * 3),
    )
    @pytest.mark.slow
    def test_rules(self, rule, k, distil, expected):
        objective = Objective(Coefficients(), topk=k, selection=rule, distil=distil)
        chosen = objective.select(self.scores, self.x)
        mask, pairs = chosen.mask, chosen.pairs
        np.testing.assert_array_equal(mask, np.array(expected, bool))
        np.testing.assert_array_equal(chosen.counts(), np.sum(expected, axis=0))
        if k is None:
            self.assertIsNone(pairs)
        else:
            self.assertEqual(sorted(np.stack(pairs, 1).tolist()), np.argwhere(expected).tolist())

    def test_k_components_a_row(self):
        objective = Objective(Coefficients(), topk=1.4, distil=True).with_topk(
            2, selection="sample"
        )
        expected = np.array([[0, 1, 1, 1], [1, 1, 0, 1], [0, 1, 1, 1]], bool)
        np.testing.assert_array_equal(objective.select(self.scores, self.x).mask, expected)

    @parameterized.parameters((False, [0, 0, 0]), (True, [0, 0, 1]))
    def test_always_active(self, distil, expected):
        objective = Objective(Coefficients(), topk=1.0, distil=distil)
        np.testing.assert_array_equal(objective.always_active(3), np.array(expected, bool))


class SketchTest(absltest.TestCase):
    @pytest.mark.slow
    def test_measures_with_the_same_directions_at_every_call(self):
        target, x = networks.make("mlp")
        components = networks.components(target)
        routes = Routes(attribution_mode="sketch", num_probes=2)
        objective = dataclasses.replace(TOPK, routes=routes)
        first, again = (objective.attribute(target, components, x).scores for _ in range(2))
        np.testing.assert_array_equal(first, again)
        other = objective.attribute(target, components, x, jax.random.key(1)).scores
        self.assertGreater(float(jnp.abs(first - other).max()), 0)

    def test_more_directions_outside_training_come_nearer_to_exact_attributions(self):
        """Their squares are means over groups of directions, the last of another size."""
        target, x = networks.make("mlp")
        components = networks.components(target)

        def squares(key=None, **fields):
            objective = dataclasses.replace(TOPK, routes=Routes(**fields))
            return jax.jit(lambda: objective.attribute(target, components, x, key).scores ** 2)()

        exact = squares(attribution_mode="reverse")
        few, many = {"num_probes": 2}, {"num_probes": 2, "evaluation_probes": 1000}
        (trained, again), (rough, near) = (
            [squares(key, attribution_mode="sketch", **fields) for fields in (few, many)]
            for key in (jax.random.key(0), None)
        )
        np.testing.assert_array_equal(trained, again)
        error = jnp.mean(jnp.abs(near - exact)) / jnp.mean(exact)
        self.assertLess(float(error), 2 * np.sqrt(2 / 1000))
        self.assertGreater(float(jnp.mean(jnp.abs(rough - exact)) / jnp.mean(exact)), float(error))


class BadObjectiveTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"selection": "most"}, "selection must be one of .+'exact'.+, got 'most'"),
        ({"minimality_loss": "l1"}, "minimality_loss must be one of .+, got 'l1'"),
        ({"attribution": "guess"}, "attribution must be one of .+'ablation'.+, got 'guess'"),
        ({"metric": "max"}, "metric must be 'rms', 'fisher', or a function .+, got 'max'"),
        ({"attribution_source": "sum"}, "attribution_source must be one of .+, got 'sum'"),
        ({"hidden_activation": "tanh"}, "activation must be one of .+, got 'tanh'"),
        ({"schatten_p": 0.0}, r"schatten_p must be in \(0, 2\], got 0.0"),
        ({"lp_p": 2.5}, r"lp_p must be in \(0, 2\], got 2.5"),
        ({"topk": None}, r"coefficients \['minimality', 'simplicity'\] need a top-k selection"),
        ({"coefficients": Coefficients(activation=1.0)}, "needs hidden_sites, got none"),
    )
    def test_is_refused(self, fields, message):
        with self.assertRaisesRegex(ValueError, message):
            dataclasses.replace(TOPK, **fields)

    @parameterized.parameters(
        ({"masked_route": "sparse"}, "masked_route must be one of .+, got 'sparse'"),
        ({"attribution_mode": "back"}, "attribution_mode must be one of .+, got 'back'"),
        ({"num_probes": 0}, "num_probes must be at least 1, got 0"),
        ({"evaluation_probes": -1}, "evaluation_probes must be at least 0, got -1"),
    )
    def test_route_is_refused(self, fields, message):
        with self.assertRaisesRegex(ValueError, message):
            Routes(**fields)

    @parameterized.parameters(*(field.name for field in dataclasses.fields(Coefficients)))
    def test_negative_coefficient(self, name):
        refused = {-0.1: "must not be negative", float("nan"): "must be a finite", "1": "got '1'"}
        for value, message in refused.items():
            with self.assertRaisesRegex(UserError, f"{name} .*{message}"):
                Coefficients(**{name: value})

    @parameterized.parameters(
        ("batch", 0.05, False, "selects nothing"),
        ("batch", 3.5, False, r"at most num_components \(3\)"),
        ("batch", 2.5, True, r"at most num_components - 1.+ \(2\)"),
        ("sample", 1.5, False, "whole k"),
        ("sample", 3.0, True, r"at most num_components - 1.+ \(2\)"),
    )
    def test_k_that_does_not_fit(self, rule, k, distil, message):
        objective = dataclasses.replace(TOPK, topk=k, selection=rule, distil=distil)
        with self.assertRaisesRegex(ValueError, message):
            objective.check_sizes(16, 3)


if __name__ == "__main__":
    absltest.main()
