"""Learned gates: where they start, what they learn from, and decompositions with them."""

import dataclasses
import tempfile
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.decomposition import directory
from apd_jax.errors import UserError
from apd_jax.objective import gates, selection
from apd_jax.objective.coefficients import Coefficients, Multipliers
from apd_jax.objective.objective import Objective
from apd_jax.runtime import loop
from apd_jax.training.config import Settings

RULE = Objective(Coefficients(0.0, minimality=1.0, l0=0.5), topk=1.3, selection="gates")


class GatesTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.target, self.x = networks.make("mlp")
        self.factors = networks.components(self.target)
        self.components = gates.start(RULE, self.target, self.x, self.factors)
        self.attributed = RULE.attribute(self.target, self.factors, self.x)

    @pytest.mark.slow
    def test_readings(self):
        found = gates.readings(self.factors, self.attributed.records, (7,))
        expected = np.zeros((7, 3))
        for record in self.attributed.records.values():
            for c, matrix in enumerate(networks.matrices(self.factors)[record.name]):
                expected[:, c] += np.sum(np.square(record.x @ matrix), axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-4)

    @pytest.mark.slow
    def test_start_as_batch_topk(self):
        scores = RULE.attribute(self.target, self.components, self.x).scores
        expected = selection.batch_topk_mask(self.attributed.scores, 1.3)
        np.testing.assert_array_equal(RULE.select(scores, self.x).mask, expected)
        np.testing.assert_array_equal(
            np.argsort(scores, axis=None), np.argsort(self.attributed.scores, axis=None)
        )
        self.assertIs(gates.start(RULE, self.target, self.x, self.components), self.components)

    @pytest.mark.slow
    def test_limited(self):
        """All gates are lowered by one number until k are open; gates that keep k stay."""
        wide = gates.start(dataclasses.replace(RULE, topk=2.0), self.target, self.x, self.factors)
        for rule in (RULE, dataclasses.replace(RULE, valid=lambda x: jnp.arange(len(x)) < 4)):
            rows = len(self.x) if rule.valid is None else 4
            found = gates.limited(rule, self.target, self.x, wide)
            scores = rule.attribute(self.target, found, self.x).scores
            mask = rule.select(scores, self.x).mask
            self.assertEqual(mask.sum(), int(1.3 * rows))
            np.testing.assert_array_equal(
                mask[:rows], selection.batch_topk_mask(self.attributed.scores[:rows], 1.3)
            )
            lowered = found.gates.weights - wide.gates.weights
            np.testing.assert_array_equal(lowered, jnp.zeros((3, 3)).at[:, 2].set(lowered[0, 2]))
            self.assertLess(lowered[0, 2], 0)
            again = gates.limited(rule, self.target, self.x, found)
            chex.assert_trees_all_equal(again, found)

    @pytest.mark.slow
    def test_rows_that_do_not_count_open_no_gate(self):
        rule = dataclasses.replace(RULE, valid=lambda x: jnp.arange(len(x)) < 4)
        components = gates.start(rule, self.target, self.x, self.factors)
        scores = rule.attribute(self.target, components, self.x).scores
        chosen = rule.select(scores, self.x)
        expected = selection.batch_topk_mask(self.attributed.scores[:4], 1.3)
        np.testing.assert_array_equal(chosen.mask[:4], expected)
        self.assertFalse(np.any(chosen.mask[4:]) or np.any(chosen.weights[4:]))
        bad = rule.select(scores.at[0, 0].set(jnp.nan).at[1, 1].set(jnp.inf), self.x)
        self.assertFalse(bad.mask[0, 0] or bad.mask[1, 1])

    @pytest.mark.slow
    def test_gradient_is_straight_through(self):
        """The factors' is that of the mask held fixed; the gates' has σ'(z) for the step's."""
        weights = networks.normal(4, 3, 3) * 0.3 + jnp.array([1.0, 0.2, 0.0])
        components = gates.Gated(self.factors, self.components.gates._replace(weights=weights))

        def loss(components):
            multipliers = Multipliers(jnp.float32(0.5))
            terms, chosen = RULE.terms(self.target, components, self.x, multipliers=multipliers)
            return RULE.total(terms), chosen

        (value, chosen), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(components)
        centre = components.gates.centre
        squares = gates.readings(self.factors, self.attributed.records, (7,))
        own = jnp.log(self.attributed.scores**2) - centre[:, 0]
        read = jnp.log(squares) - centre[:, 1]

        def literal(factors, mask):
            outputs = networks.literal_masked(self.target, factors, self.x, mask)
            error = jnp.mean(jnp.square(outputs - self.target(self.x)))
            return error + 0.5 * (jnp.sum(mask) / (0.65 * 7) - 1)

        z = weights[:, 0] * own + weights[:, 1] * read + weights[:, 2]
        mask = jnp.float32(z >= 0)
        np.testing.assert_array_equal(chosen.mask, z >= 0)
        slow = jax.jit(jax.value_and_grad(literal, argnums=(0, 1)))
        expected, (of_factors, of_mask) = slow(self.factors, mask)
        np.testing.assert_allclose(value, expected, rtol=1e-4)
        chex.assert_trees_all_close(dict(gradient), of_factors, rtol=1e-3, atol=1e-4)
        slope = of_mask * jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)
        expected = jnp.stack([jnp.sum(slope * f, axis=0) for f in (own, read, 1.0)], axis=1)
        np.testing.assert_allclose(gradient.gates.weights, expected, rtol=1e-3, atol=1e-4)
        self.assertFalse(np.any(gradient.gates.centre))


class DecomposeTest(parameterized.TestCase):
    @pytest.mark.slow
    def test_trained_saved_and_measured(self):
        """They are thinned out to the k of the end, and kept by every way of keeping components."""
        target, x = networks.make("tms")
        x = np.asarray(jnp.tile(x, (8, 1)))
        options = {
            "num_components": 6,
            "topk": 4.0,
            "selection": "gates",
            "coefficients": {"minimality": 1.0, "simplicity": 0.0, "partial": 0.5, "l0": 2.0},
            "schedules": {"topk": "0:1 0.5:0.5"},
            "refine": {"every": 0},
            "steps": 60,
            "batch_size": 16,
        }
        self.enterContext(mock.patch.object(directory, "_write_report"))
        place = f"{self.enterContext(tempfile.TemporaryDirectory())}/run"
        stops = loop.Observer()
        count = iter(range(10))
        stops.should_stop = lambda: next(count) > 0
        stopped = apd_jax.decompose(
            target, x, workdir=place, observer=stops, chunk_steps=20, **options
        )
        self.assertLess(stopped.history[-1]["step"], 59)
        found = apd_jax.decompose(target, x, workdir=place, chunk_steps=20, **options)
        straight = apd_jax.decompose(target, x, chunk_steps=20, **options)
        chex.assert_trees_all_equal(found.components, straight.components)
        learned = found.components.gates.weights
        self.assertGreater(np.abs(learned - np.array([1.0, 0.0, 0.0])).min(), 0)
        mask = found.mask(x)
        self.assertLessEqual(mask.sum(axis=1).mean(), 2.0)
        again = apd_jax.load(f"{place}/components", target)
        np.testing.assert_array_equal(again.mask(x), mask)
        self.assertEqual(found.objective.topk, 2.0)
        active = found.summary(x, baselines=()).active
        self.assertAlmostEqual(active.active_components, mask.sum(axis=1).mean(), places=4)
        evidence = found.evidence(x, adversary_steps=(2,), draws=1, baselines=())
        found.report(f"{place}/report.html", x, evidence=evidence)
        self.assertAlmostEqual(evidence.to_dict()["l0"], mask.sum(axis=1).mean(), places=4)
        on = apd_jax.decompose(target, x, init=found, **options | {"steps": 1})
        chex.assert_trees_all_close(on.components.gates, found.components.gates, atol=0.2)

    @parameterized.parameters(
        ({"coefficients": Coefficients(minimality=1.0, l0=1.0)}, {}, "loss of learned gates"),
        ({"selection": "gates", "topk": None}, {}, "needs a topk to start from"),
        ({"selection": "gates", "distil": True}, {}, "neither distil"),
        ({"selection": "gates"}, {"unit_norm": True}, "unit_norm=True"),
    )
    def test_refused(self, objective, settings, message):
        with self.assertRaisesRegex(UserError, message):
            Settings(Objective(**objective), num_components=4, **settings)


if __name__ == "__main__":
    absltest.main()
