"""Adam in the eigenvectors of the gradients of every site."""

import dataclasses
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax import randomness
from apd_jax.attribution import metrics
from apd_jax.components import Factors
from apd_jax.objective import gates
from apd_jax.objective.coefficients import Coefficients
from apd_jax.objective.objective import Objective
from apd_jax.sites import Target
from apd_jax.training import eigenbasis, optimizers
from apd_jax.training.config import Settings
from apd_jax.training.eigenbasis import Basis
from apd_jax.training.trainer import Trainer

OBJECTIVE = Objective(Coefficients(faithfulness=1, minimality=1), topk=1)
KEY = randomness.root(3)


def stacked():
    """Two stacked matrices, one for the input and one for its square, then one matrix."""
    params = {"w": networks.normal(0, 2, 3, 3), "out": networks.normal(1, 3, 2)}

    def apply(params, x):
        read = jnp.stack([x, jnp.square(x)], axis=1)
        hidden = jnp.tanh(jnp.einsum("bgi,gio->bgo", read, params["w"]))
        return hidden.sum(axis=1) @ params["out"]

    return Target(apply, params, inputs=jnp.zeros((2, 3)))


def finder(objective, target, block_size=4):
    """A function of inputs that gives the bases, one program as in a training."""
    return jax.jit(lambda x: eigenbasis.find(objective, target, x, KEY, block_size))


def literal_moments(objective, target, x, block_size):
    """Sums of `∂W ∂Wᵀ` and `∂Wᵀ ∂W` over blocks of inputs and probes, one gradient at a time."""

    def along(weights, part, probe):
        outputs = target.with_weights(weights)(part)
        return jnp.sum(probe * outputs.reshape(len(part), -1))

    probes = jax.jit(lambda part: metrics.probes(objective.metric, KEY, target(part), 4))
    gradient, totals = jax.jit(jax.grad(along)), {}
    for start in range(0, len(x) // block_size * block_size, block_size):
        part = x[start : start + block_size]
        for probe in probes(part):
            for site, g in jax.tree.map(np.asarray, gradient(target.weights, part, probe)).items():
                found = g @ np.swapaxes(g, -1, -2), np.swapaxes(g, -1, -2) @ g
                before = totals.get(site, (0.0, 0.0))
                totals[site] = before[0] + found[0], before[1] + found[1]
    return totals


class FindTest(parameterized.TestCase):
    @parameterized.parameters("mlp", "tms_hidden", "stacked", "fisher")
    def test_bases_are_eigenvectors_of_the_literal_sums(self, name):
        target, objective = (stacked() if name == "stacked" else networks.mlp()), OBJECTIVE
        if name == "tms_hidden":
            target = networks.tms(2)
        if name == "fisher":
            objective = dataclasses.replace(OBJECTIVE, metric="fisher", minimality_loss="kl")
        x = networks.normal(5, 8, 4 if name == "tms_hidden" else 3)
        bases = jax.tree.map(np.asarray, finder(objective, target)(x))
        expected = literal_moments(objective, target, x, 4)
        self.assertEqual(set(bases), set(target.weights))
        for site, basis in bases.items():
            for vectors, moment in zip(basis, expected[site], strict=True):
                eye = np.eye(moment.shape[-1], dtype=np.float32)
                rotated = np.swapaxes(vectors, -1, -2) @ moment @ vectors
                off = np.abs(rotated * (1 - eye)).max()
                self.assertLess(off, 1e-5 * np.abs(rotated).max())
                product = np.swapaxes(vectors, -1, -2) @ vectors
                np.testing.assert_allclose(product, np.broadcast_to(eye, product.shape), atol=1e-5)

    def test_inputs_that_do_not_count_change_nothing(self):
        target, x = networks.mlp(), networks.normal(5, 8, 3)
        counts = jnp.arange(8) % 2 == 0
        objective = dataclasses.replace(OBJECTIVE, valid=lambda batch: batch[:, 0] < 50)
        found = finder(objective, target, None)
        bases = [found(jnp.where(counts[:, None], x, bad)) for bad in (99.0, 77.0)]
        chex.assert_trees_all_close(*bases)

    def test_a_wide_side_stays_as_it_is(self):
        target = networks.mlp(d_in=3, hidden=5, outputs=2)
        with mock.patch.object(eigenbasis, "WIDEST", 4):
            bases = finder(OBJECTIVE, target)(networks.normal(5, 8, 3))
        first, second = bases["first/w"], bases["second/w"]
        self.assertIsNone(first.writes)
        self.assertIsNone(second.reads)
        components = networks.components(target)
        rotated = eigenbasis.rotated(components, bases)
        chex.assert_trees_all_equal(rotated["first/w"].writes, components["first/w"].writes)
        chex.assert_trees_all_close(
            eigenbasis.rotated_back(rotated, bases), components, rtol=1e-5, atol=1e-6
        )


class StepTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.target = networks.mlp()
        cls.components = networks.components(cls.target)
        cls.bases = finder(OBJECTIVE, cls.target)(networks.normal(5, 8, 3))

    def gradient(self, components, step):
        return jax.tree.map(lambda leaf: jnp.cos(3 * leaf + step), components)

    @parameterized.parameters(False, True)
    def test_is_adam_on_the_coordinates(self, relative):
        def run(components, optimizer, into, back, bases):
            @jax.jit
            def one(components, state, step):
                gradient = into(self.gradient(back(components), step))
                return optimizer.step(gradient, state, components)[:2]

            state = optimizer.init(components, bases)
            for step in range(4):
                components, state = one(components, state, step)
            return back(components)

        optimizer = optimizers.decomposition_optimizer(lambda step: 0.1, relative=relative)

        def same(tree):
            return tree

        def matrices(tree, inverse):
            return {
                site: Factors(
                    *(
                        side @ (basis.T if inverse else basis)
                        for side, basis in zip(tree[site], self.bases[site], strict=True)
                    )
                )
                for site in tree
            }

        found = run(self.components, optimizer, same, same, self.bases)
        at = matrices(self.components, False)
        expected = run(
            at, optimizer, lambda t: matrices(t, False), lambda t: matrices(t, True), None
        )
        chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
        plain = run(self.components, optimizer, same, same, None)
        difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), found, plain)
        self.assertGreater(max(jax.tree.leaves(difference)), 0.01)

    def test_the_norm_of_the_gradient_is_the_same(self):
        optimizer = optimizers.decomposition_optimizer(lambda step: 0.1)
        gradient = self.gradient(self.components, 0)
        states = [optimizer.init(self.components, bases) for bases in (None, self.bases)]
        norms = [optimizer.step(gradient, state, self.components)[2] for state in states]
        self.assertEqual(*map(float, norms))

    def test_unit_norm_is_kept(self):
        optimizer = optimizers.decomposition_optimizer(lambda step: 0.1, unit_norm=True)
        components, state = self.components, optimizer.init(self.components, self.bases)
        for step in range(5):
            components, state, _ = optimizer.step(
                self.gradient(components, step), state, components
            )
        for factors in components.values():
            norms = jnp.linalg.norm(factors.reads, axis=-1)
            chex.assert_trees_all_close(norms, jnp.ones_like(norms), rtol=1e-5)

    @pytest.mark.slow
    def test_gates_pass_through(self):
        objective = Objective(Coefficients(faithfulness=1, minimality=1), topk=1, selection="gates")
        settings = Settings(objective, num_components=3, batch_size=4, steps=3, eigenbasis=True)
        targets = jax.tree.map(lambda leaf: leaf[None], self.target)
        trainer = Trainer(
            settings, targets, lambda key, n: jax.random.normal(key, (n, 3)), jnp.zeros(1, "uint32")
        )
        state = trainer.init_state()
        one = jax.tree.map(lambda leaf: leaf[0], state)
        self.assertIsInstance(one.components, gates.Gated)
        rotated = eigenbasis.rotated(one.components, one.optimizer.bases)
        self.assertIsInstance(rotated, gates.Gated)
        chex.assert_trees_all_equal(rotated.gates, one.components.gates)


class TrainingTest(absltest.TestCase):
    @pytest.mark.slow
    def test_correlated_inputs_are_explained_in_fewer_steps(self):
        mix = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0] * np.geomspace(1, 30, 6)
        x = np.random.default_rng(1).normal(size=(512, 6)).astype("float32") @ mix.T
        target = Target(
            lambda params, x: x @ params["w"],
            {"w": networks.normal(0, 6, 4)},
            inputs=jnp.asarray(x[:2], jnp.float32),
        )
        errors = []
        for on in (False, True):
            found = apd_jax.decompose(
                target,
                x.astype("float32"),
                num_components=2,
                topk=2,
                steps=60,
                batch_size=64,
                coefficients={"faithfulness": 0.01, "minimality": 1, "simplicity": 0},
                refine={"every": 0},
                eigenbasis=on,
            )
            errors.append(float(jnp.mean((found(x) - target(x)) ** 2)))
        self.assertLess(errors[1], 0.5 * errors[0])

    def test_shapes_of_a_basis(self):
        bases = jax.eval_shape(finder(OBJECTIVE, stacked()), jnp.zeros((8, 3)))
        shapes = {site: jax.tree.map(jnp.shape, tuple(basis)) for site, basis in bases.items()}
        self.assertEqual(shapes["w"], ((2, 3, 3), (2, 3, 3)))
        self.assertEqual(shapes["out"], ((3, 3), (2, 2)))
        self.assertIsInstance(bases["w"], Basis)


if __name__ == "__main__":
    absltest.main()
