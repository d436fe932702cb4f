"""The toy model of superposition: its formula, its parameters before training, its training."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.runtime import loop
from apd_jax.studies import pretraining
from apd_jax.studies.task import TargetTraining
from apd_jax.studies.tms.network import TMSTask


def task(hidden_layers=0, hidden_kind="identity", probability=0.3, features=5):
    return TMSTask(SparseFeatures(features, probability), 2, hidden_layers, hidden_kind)


def init(own):
    return jax.jit(own.init)(jax.random.key(0))


class FormulaTest(parameterized.TestCase):
    @parameterized.parameters(0, 1, 3)
    def test_literal(self, hidden_layers):
        target = networks.tms(hidden_layers)
        x = np.asarray(networks.normal(20, 7, 4))
        W = np.asarray(target.weights["linear1/kernel"])
        hidden = x @ W
        for layer in range(hidden_layers):
            hidden = hidden @ np.asarray(target.weights[f"hidden_{layer}/kernel"])
        expected = np.maximum(hidden @ W.T + np.asarray(target.params["b_final"]), 0)
        found = jax.jit(lambda t, x: t(x))(target, x)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    def test_loss_and_labels(self):
        own = task()
        params = init(own)
        x = own.inputs(jax.random.key(1), 16)
        np.testing.assert_array_equal(own.labels(x), x)
        expected = np.mean((np.asarray(own.target(params)(x)) - np.asarray(x)) ** 2)
        np.testing.assert_allclose(own.loss(params, x), expected, rtol=1e-5)


class InitTest(parameterized.TestCase):
    @parameterized.parameters(
        ("identity", ["b_final", "linear1"]),
        ("random", ["b_final", "linear1"]),
        ("trained", ["b_final", "hidden_0", "hidden_1", "linear1"]),
    )
    def test_hidden_layers(self, kind, trained):
        own = task(2, kind)
        params = init(own)
        self.assertEqual([name for name in sorted(params) if own.is_trained(name)], trained)
        first, second = (np.asarray(params[f"hidden_{i}"]["kernel"]) for i in (0, 1))
        if kind == "identity":
            np.testing.assert_array_equal(first, np.eye(2))
            np.testing.assert_array_equal(second, np.eye(2))
        else:
            self.assertGreater(np.abs(first - second).min(), 1e-4)
        np.testing.assert_array_equal(params["b_final"], np.zeros(5))
        self.assertEqual(own.sites, ("linear1/kernel", "hidden_0/kernel", "hidden_1/kernel"))
        self.assertEqual(set(own.target(params).sites), set(own.sites))
        self.assertEqual(own.hidden_sites, own.sites)

    def test_random_matrices_are_standard_normal(self):
        own = TMSTask(SparseFeatures(5, 0.1), 30, 1, "random")
        kernel = np.asarray(init(own)["hidden_0"]["kernel"])
        np.testing.assert_allclose([kernel.mean(), kernel.std()], [0, 1], atol=6 / 30)

    @parameterized.parameters(
        (lambda: task(hidden_kind="eye"), "hidden_kind must be .+ got 'eye'"),
        (lambda: TMSTask(num_hidden=0), "num_hidden must be at least 1, got 0"),
        (lambda: TMSTask(hidden_layers=-1), "hidden_layers must be at least 0, got -1"),
    )
    def test_bad_arguments(self, make, message):
        with self.assertRaisesRegex(ValueError, message):
            make()


class TrainingTest(parameterized.TestCase):
    @pytest.mark.slow
    def test_reduces_the_loss_and_leaves_fixed_layers_alone(self):
        own = task(1, "identity", features=2)
        training = TargetTraining(steps=200, batch_size=64, learning_rate=0.02, schedule="linear")
        seeds = jnp.array([0, 7], jnp.uint32)
        trainer = pretraining.TargetTrainer(own, training, seeds)
        start = trainer.init_state()
        before = jax.tree.map(np.array, start.params)
        first = pretraining.final_loss(own, start.params, seeds, batch_size=256, batches=2)
        after = loop.run_steps(trainer, start, chunk_steps=100)
        last = pretraining.final_loss(own, after.params, seeds, batch_size=256, batches=2)
        self.assertEqual(last.shape, (2,))
        np.testing.assert_array_less(last, 0.3 * np.asarray(first))
        np.testing.assert_array_equal(
            after.params["hidden_0"]["kernel"], before["hidden_0"]["kernel"]
        )
        change = np.abs(after.params["linear1"]["kernel"] - before["linear1"]["kernel"])
        self.assertGreater(change.max(), 0.1)
        self.assertFalse(np.allclose(*after.params["linear1"]["kernel"]))

    @parameterized.parameters(
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative, got -0.1"),
        ({"weight_decay": float("nan")}, "weight_decay must be a finite number, got nan"),
    )
    def test_bad_arguments(self, fields, message):
        fields = {"steps": 1, "batch_size": 1, "learning_rate": 0.1, "schedule": "linear"} | fields
        with self.assertRaisesRegex(ValueError, message):
            TargetTraining(**fields)


if __name__ == "__main__":
    absltest.main()
