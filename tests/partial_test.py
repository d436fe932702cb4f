"""Partial masks: random factors of inactive components, an adversary, and the loss they make."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from apd_jax import config_fields, randomness
from apd_jax.config_fields.former_names import present
from apd_jax.errors import UserError
from apd_jax.objective import partial
from apd_jax.objective.coefficients import Coefficients
from apd_jax.objective.normalisation import scales
from apd_jax.objective.objective import Objective
from apd_jax.objective.partial import PartialMasks
from apd_jax.training.config import Settings


def objective(**masks):
    return Objective(Coefficients(partial=1.0), topk=1.3, masks=PartialMasks(**masks))


class LossTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.target, self.x = networks.make("mlp")
        self.components = networks.components(self.target)

    def loss(self, step=0, **masks):
        """The loss, and the factors that the step's key draws."""
        key = jax.random.key(step)
        terms, chosen = jax.jit(objective(**masks).terms)(self.target, self.components, self.x, key)
        drawn = randomness.stream_of_step(key, "partial masks")
        return terms["partial"], chosen.mask, drawn

    def literal(self, mask):
        outputs = networks.literal_masked(self.target, self.components, self.x, mask)
        return np.mean(np.square(outputs - self.target(self.x)), axis=1)

    def test_uniform(self):
        found = []
        for step in range(2):
            loss, mask, key = self.loss(step)
            r = jax.random.uniform(key, mask.shape)
            np.testing.assert_allclose(loss, self.literal(np.where(mask, 1, r)).mean(), rtol=1e-4)
            found.append(float(loss))
        self.assertLen(set(found), 2)
        self.assertEqual(float(self.loss(1)[0]), found[1])

    def test_halves_are_the_same_numbers_as_before_the_other_distributions(self):
        """The loss was that of a boolean mask; results that were kept depend on every bit."""
        loss, mask, key = self.loss(partial_masks="halves")
        half = jax.random.bernoulli(key, 0.5, mask.shape)
        np.testing.assert_array_equal(
            partial.scaled(mask, half.astype(jnp.float32)), (mask | half).astype(jnp.float32)
        )
        np.testing.assert_allclose(loss, self.literal(mask | half).mean(), rtol=1e-4)

    def test_adversary_finds_the_worst_masks_of_its_share_of_the_examples(self):
        _, mask, key = self.loss()
        r = jax.random.uniform(key, mask.shape)
        every = itertools.product([0.0, 1.0], repeat=mask.shape[1])
        corners = np.max([self.literal(np.where(mask, 1, np.array(c))) for c in every], axis=0)
        random = self.literal(np.where(mask, 1, r))
        found, *_ = self.loss(adversary_share=3 / 7, adversary_steps=30, adversary_step_size=0.1)
        attacked = float(found) * 7 - random[3:].sum()  # the other examples keep their factors
        self.assertGreater(attacked, random[:3].sum() + 0.8 * (corners - random)[:3].sum())
        self.assertLessEqual(attacked, corners[:3].sum() * 1.001)

    @pytest.mark.slow
    def test_remainder_is_one_more_inactive_component(self):
        """Weights `Σ m_c P_c + r_Δ (θ* − Σ P_c)`, one example after another; the gradient too."""
        _, mask, key = self.loss()
        count = mask.shape[1]
        start = jax.random.uniform(key, (len(mask), count + 1))

        @jax.jit
        def literal(components, r):
            m, parts = partial.scaled(mask, r[:, :count]), networks.matrices(components)
            total = 0.0
            for row, x in enumerate(self.x):
                weights = {
                    site: sum(m[row, c] * part[c] for c in range(count))
                    + r[row, count] * (self.target.weights[site] - part.sum(axis=0))
                    for site, part in parts.items()
                }
                outputs = networks.output(self.target, weights, x[None])
                total += jnp.mean(jnp.square(outputs - self.target(x[None])))
            return total / len(self.x)

        for options in ({}, {"adversary_share": 1.0}):
            rule = objective(remainder=True, **options)

            @jax.jit
            @jax.value_and_grad
            def loss(components, rule=rule):
                return rule.terms(self.target, components, self.x, jax.random.key(0))[0]["partial"]

            found, gradient = loss(self.components)
            r = start
            if options:
                r = partial.attack(rule.masks, lambda r: literal(self.components, r), start)
                self.assertGreater(np.abs(r - start)[:, count].max(), 0.1)  # Δ is attacked too
            expected, of_literal = jax.value_and_grad(literal)(self.components, r)
            np.testing.assert_allclose(found, expected, rtol=1e-4)
            chex.assert_trees_all_close(gradient, of_literal, rtol=1e-3, atol=1e-4)

    def test_adversary_takes_signed_steps(self):
        masks = PartialMasks(adversary_share=1.0, adversary_steps=2, adversary_step_size=0.3)
        moved = partial.attack(
            masks, lambda r: jnp.sum(r * jnp.array([5.0, -0.01, 0.0])), jnp.full(3, 0.5)
        )
        np.testing.assert_allclose(moved, [1.0, 0.0, 0.5], atol=1e-6)

    def test_no_gradient_flows_through_the_adversary(self):
        attacked = objective(adversary_share=1.0)

        def total(components):
            found, _ = attacked.terms(self.target, components, self.x, jax.random.key(0))
            return found["partial"]

        gradient = jax.jit(jax.grad(total))(self.components)
        _, mask, key = self.loss()
        start = jax.random.uniform(key, mask.shape)

        @jax.jit
        def at(components, r):
            full = partial.scaled(mask, r)
            outputs = networks.literal_masked(self.target, components, self.x, full)
            return jnp.mean(jnp.square(outputs - self.target(self.x)))

        worst = partial.attack(attacked.masks, lambda r: at(self.components, r), start)
        expected = jax.grad(at)(self.components, worst)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradient, expected
        )

    @parameterized.parameters(
        ({"adversary_share": 1.5}, "adversary_share must be in"),
        ({"adversary_step_size": 0.0}, "adversary_step_size must be in"),
        ({"adversary_steps": 0}, "adversary_steps must be at least 1"),
        ({"partial_masks": "thirds"}, "partial_masks must be one of"),
    )
    def test_refused(self, options, message):
        with self.assertRaisesRegex(UserError, message):
            PartialMasks(**options)


class FormerNameTest(absltest.TestCase):
    def test_configs_with_stochastic_load_as_halves(self):
        found = config_fields.from_mapping(
            Settings(),
            {"coefficients": {"stochastic": 0.3}, "schedules": {"stochastic": "0:0 1:1"}},
        )
        self.assertEqual(found.objective.coefficients.partial, 0.3)
        self.assertEqual(found.schedules.partial, "0:0 1:1")
        self.assertEqual(found.objective.masks.partial_masks, "halves")

    def test_present_names_stay(self):
        config = {"a": {"coefficients": {"partial": 0.3}, "start": "parted"}, "k": [1]}
        expected = {"a": {"coefficients": {"partial": 0.3}, "start": "partitioned"}, "k": [1]}
        self.assertEqual(present(config), expected)
        self.assertNotIn("partial_masks", present({"coefficients": {"stochastic": 0.0}}))

    def test_scales_of_former_checkpoints_divide_the_term(self):
        target, x = networks.make("mlp")
        settings = Settings(objective(), batch_size=7, num_components=3, relative_losses=True)
        found = jax.eval_shape(lambda x: scales(settings.objective, target, x), x)
        self.assertEqual(set(found) - {"faithfulness"}, {"stochastic"})

        @dataclasses.dataclass
        class State:
            step: int = 0
            scales: dict = dataclasses.field(default_factory=lambda: {"stochastic": 4.0})

        self.assertEqual(settings.multipliers(State()).losses, {"partial": 0.25})


if __name__ == "__main__":
    absltest.main()
