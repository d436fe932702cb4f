"""One step: where gradients flow, its routes, and several seeds side by side."""

import dataclasses
import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from apd_jax.attribution import METHODS
from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.masked.forward import composed_apply
from apd_jax.objective.coefficients import Coefficients, Routes
from apd_jax.objective.objective import Objective
from apd_jax.objective.terms import TERMS
from apd_jax.runtime import loop
from apd_jax.training import optimizers
from apd_jax.training.config import Settings
from apd_jax.training.step import init_state, train_step
from apd_jax.training.trainer import Trainer
from apd_jax.training.unit_norm import normalise_reads, project_gradient

TOPK = Objective(Coefficients(faithfulness=1, minimality=1, simplicity=0.5), topk=1.3)
LP = Objective(Coefficients(faithfulness=1, lp_minimality=0.7, lp_simplicity=0.3), topk=None)
# A seed alone against the same seed among others: products are summed in another order.
SEED_TOLERANCE = 1e-4


@jax.custom_vjp
def forbid_gradient(tree):
    """The identity, which nothing may be differentiated through."""
    return tree


def _refuse(_, gradient):
    raise AssertionError("a gradient flows through the attributions")


forbid_gradient.defvjp(lambda tree: (tree, None), _refuse)


def gradient_of(objective, target, components, x):
    def total(components):
        terms, chosen = objective.terms(target, components, x)
        return objective.total(terms), (terms, chosen.mask)

    return jax.jit(jax.value_and_grad(total, has_aux=True))(components)


class GradientTest(parameterized.TestCase):
    @parameterized.product(name=("tms_hidden", "mlp"), source=("target", "components"))
    @pytest.mark.slow
    def test_is_that_of_the_losses_at_a_fixed_mask(self, name, source):
        target, x = networks.make(name)
        components = networks.components(target)
        coefficients = Coefficients(faithfulness=0, minimality=2, output=3)
        objective = dataclasses.replace(TOPK, coefficients=coefficients, attribution_source=source)
        (loss, (_, mask)), gradient = gradient_of(objective, target, components, x)
        self.assertEqual(int(mask.sum()), 9)

        def literal(components):
            sums = {site: m.sum(axis=0) for site, m in networks.matrices(components).items()}
            masked = networks.literal_masked(target, components, x, mask)
            minimality = jnp.mean((masked - target(x)) ** 2)
            return 2 * minimality + 3 * jnp.mean(
                (networks.output(target, sums, x) - target(x)) ** 2
            )

        expected = jax.jit(jax.value_and_grad(literal))(components)
        chex.assert_trees_all_close((loss, gradient), expected, rtol=1e-4, atol=1e-4)

    @parameterized.parameters("target", "components")
    def test_none_flows_through_attributions_of_the_topk_objective(self, source):
        target, x = networks.make("mlp")
        components = networks.components(target)
        attribute = METHODS["gradient"]

        def guarded(target, components, x, *options, **given):
            return attribute(target, forbid_gradient(components), x, *options, **given)

        with mock.patch.dict(METHODS, gradient=guarded):
            gradient_of(dataclasses.replace(TOPK, attribution_source=source), target, components, x)
            with self.assertRaisesRegex(AssertionError, "flows through the attributions"):
                gradient_of(LP, target, components, x)

    @parameterized.parameters(  # every network, and every route with every source
        ("tms", "dense", "target"),
        ("tms_hidden", "grouped", "components"),
        ("mlp", "grouped", "target"),
        ("mlp", "dense", "components"),
    )
    @pytest.mark.slow
    def test_narrow_projection_is_the_literal_one(self, name, route, source):
        """For every term of top-k: each knows U and V by their products alone."""
        target, x = networks.make(name)
        components = normalise_reads(networks.components(target))
        terms = [name for name in TERMS if name != "l0"]  # a loss of gates
        everything = Coefficients(**{name: 1.0 + place for place, name in enumerate(terms)})
        objective = Objective(
            everything,
            topk=1.3,
            hidden_sites=tuple(target.sites),
            routes=Routes(masked_route=route),
            attribution_source=source,
        )
        _, gradient = gradient_of(objective, target, components, x)
        found, expected = (
            project_gradient(gradient, components, mode) for mode in ("auto", "literal")
        )
        self.assertTrue(any(d_out < d_in for d_in, d_out in map(np.shape, target.weights.values())))
        chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_kl(self):
        target, x = networks.make("mlp")
        components = networks.components(target)
        objective = Objective(Coefficients(minimality=1.0), topk=1.3, minimality_loss="kl")

        @jax.jit
        def both(components):
            terms, chosen = objective.terms(target, components, x)
            masked = networks.literal_masked(target, components, x, chosen.mask)
            p, q = jax.nn.softmax(target(x)), jax.nn.softmax(masked)
            return terms["minimality"], jnp.mean(jnp.sum(p * jnp.log(p / q), axis=1))

        np.testing.assert_allclose(*both(components), rtol=1e-4)

    def test_output_has_the_metric_of_minimality(self):
        target, x = networks.make("mlp")
        components = networks.components(target)
        objective = Objective(Coefficients(output=1.0), topk=1.3, minimality_loss="kl")
        terms, _ = jax.jit(objective.terms)(target, components, x)
        p, q = jax.nn.softmax(target(x)), jax.nn.softmax(composed_apply(target, components, x))
        np.testing.assert_allclose(
            terms["output"], jnp.mean(jnp.sum(p * jnp.log(p / q), axis=1)), rtol=1e-4
        )


class RoutesTest(parameterized.TestCase):
    @parameterized.parameters(("batch", True), ("sample", False), ("exact", True))
    @pytest.mark.slow
    def test_routes_agree(self, rule, distil):
        target, x = networks.make("tms")
        components = networks.components(target)
        results = []
        for route in ("dense", "grouped"):
            objective = Objective(
                Coefficients(minimality=1.0),
                topk=1.0,
                selection=rule,
                distil=distil,
                routes=Routes(masked_route=route),
            )
            results.append(gradient_of(objective, target, components, x))
        chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-4)
        self.assertEqual(bool(results[0][0][1][1][:, -1].all()), distil)


class StepTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.target, self.x = networks.make("tms")
        self.components = networks.components(self.target)
        rate = optimizers.learning_rate_schedule(0.01, steps=10)
        self.optimizer = optimizers.decomposition_optimizer(rate)
        self.on_sphere = optimizers.decomposition_optimizer(rate, unit_norm=True)

    def step(self, objective, state, optimizer=None):
        optimizer = optimizer or self.optimizer
        return jax.jit(functools.partial(train_step, objective, optimizer))(
            self.target, state, self.x
        )

    def test_metrics(self):
        state = init_state(self.components, self.optimizer)
        state = state._replace(step=jnp.int32(1500), last_active=jnp.array([0, 501, 500]))
        # The last two components never win.
        components = jax.tree.map(
            lambda leaf: leaf * jnp.array([1, 1e-6, 1e-6])[:, None, None], self.components
        )
        objective = dataclasses.replace(TOPK, topk=0.5)
        after, metrics = self.step(objective, state._replace(components=components))
        self.assertEqual(int(after.step), 1501)
        np.testing.assert_array_equal(after.last_active, [1500, 501, 500])
        self.assertEqual(int(metrics["dead_components"]), 1)
        np.testing.assert_allclose(metrics["active_components"], 3 / 7)
        (loss, (terms, _)), gradient = gradient_of(objective, self.target, components, self.x)
        np.testing.assert_allclose(metrics["loss/total"], loss, rtol=1e-5)
        expected = 1 * terms["faithfulness"] + 1 * terms["minimality"] + 0.5 * terms["simplicity"]
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)))
        np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)

    def test_unit_norm(self):
        start = normalise_reads(self.components)
        state = init_state(start, self.on_sphere)
        _, gradient = gradient_of(TOPK, self.target, start, self.x)
        after, metrics = self.step(TOPK, state, self.on_sphere)
        slope, before = (np.asarray(f["linear1/kernel"].U) for f in (gradient, start))
        projected = slope - np.sum(slope * before, axis=1, keepdims=True) * before
        # A first step of Adam is the rate times the sign of the projected gradient.
        moved = before - 0.01 * np.sign(projected)
        expected = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        np.testing.assert_allclose(after.components["linear1/kernel"].U, expected, atol=1e-5)
        everywhere = project_gradient(gradient, start, "literal")
        norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(everywhere)))
        np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)

    def test_unit_norm_stays(self):
        state = init_state(normalise_reads(self.components), self.on_sphere)
        for _ in range(5):
            state, _ = self.step(TOPK, state, self.on_sphere)
        lengths = np.linalg.norm(state.components["linear1/kernel"].U, axis=1)
        np.testing.assert_allclose(lengths, np.ones_like(lengths), rtol=1e-6)

    def test_optimiser_is_a_program_of_its_own(self):
        if jax.default_backend() != "cpu":
            self.skipTest("only CPUs gain from it")
        state = init_state(self.components, self.optimizer)
        step = functools.partial(train_step, TOPK, self.optimizer)
        seeds = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), (self.target, state, self.x))
        compiled = jax.jit(jax.vmap(step)).lower(*seeds).compile()
        self.assertRegex(compiled.as_text(), r"call\(.*to_apply=%descend")

    def test_traced_once(self):
        traced = []

        @jax.jit
        def step(state, x):
            traced.append(None)
            return train_step(TOPK, self.optimizer, self.target, state, x)

        state = init_state(self.components, self.optimizer)
        for _ in range(4):
            state, _ = step(state, self.x)
        self.assertLen(traced, 1)


class SeedsTest(parameterized.TestCase):
    """Twenty steps of several seeds at once, by the loop."""

    settings = Settings(
        objective=dataclasses.replace(TOPK, topk=0.5),
        num_components=3,
        rank=2,
        steps=20,
        batch_size=16,
        learning_rate=0.01,
    )
    sample = SparseFeatures(4, 0.3)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.step = staticmethod(cls.trainer((5,)).step)
        cls.together = cls.run_seeds((5, 6, 7))

    @classmethod
    def trainer(cls, seeds):
        targets = [jax.tree.map(lambda leaf, s=s: leaf + s / 10, networks.tms()) for s in seeds]
        seeds = jnp.array(seeds, jnp.uint32)
        return Trainer(cls.settings, loop.stack(targets), cls.sample, seeds)

    @classmethod
    def run_seeds(cls, seeds, chunk_steps=10, state=None, steps=20):
        trainer = cls.trainer(seeds)
        trainer.step = cls.step  # compiled once
        state = trainer.init_state() if state is None else state
        return loop.run_steps(trainer, state, chunk_steps=chunk_steps, steps=steps)

    @pytest.mark.slow
    def test_chunks_change_no_bit(self):
        chex.assert_trees_all_equal(self.together, self.run_seeds((5, 6, 7), chunk_steps=20))

    @pytest.mark.slow
    def test_resuming_changes_no_bit(self):
        half = self.run_seeds((5, 6, 7), steps=10)
        saved = jax.tree.map(np.array, half)
        again = self.run_seeds((5, 6, 7), state=jax.tree.map(jnp.array, saved))
        chex.assert_trees_all_equal(self.together, again)

    @parameterized.parameters(0, 2)
    @pytest.mark.slow
    def test_alone_and_among_others(self, index):
        alone = self.run_seeds((5 + index,))
        chex.assert_trees_all_close(
            loop.pick(alone, 0),
            loop.pick(self.together, index),
            rtol=SEED_TOLERANCE,
            atol=SEED_TOLERANCE,
        )

    @pytest.mark.slow
    def test_seeds_differ(self):
        reads = self.together.components["linear1/kernel"].reads
        self.assertGreater(float(jnp.abs(reads[0] - reads[1]).max()), 0.01)
        chex.assert_tree_all_finite(self.together)


class LpTest(absltest.TestCase):
    @pytest.mark.slow
    def test_every_component_is_active(self):
        target, x = networks.make("mlp")
        components = networks.components(target)
        (_, (terms, mask)), _ = gradient_of(LP, target, components, x)
        self.assertTrue(mask.all())
        self.assertEqual(set(terms), {"faithfulness", "lp_minimality", "lp_simplicity"})
        scores = networks.literal_attributions(target, components, x, "target")
        expected = np.mean(np.sum((scores**2 + 1e-16) ** 0.45, axis=1))
        np.testing.assert_allclose(terms["lp_minimality"], expected, rtol=1e-5)


if __name__ == "__main__":
    absltest.main()
