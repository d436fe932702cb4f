"""The residual MLP: its formula in two orders of products, embeddings, labels, training."""

import math

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.runtime import loop
from apd_jax.studies import pretraining
from apd_jax.studies.resid_mlp.network import ResidualMLPTask
from apd_jax.studies.task import TargetTraining

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
}


def task(features=4, width=6, neurons=(3,), **fields):
    inputs = SparseFeatures(features, 0.5, (-1.0, 1.0))
    return ResidualMLPTask(inputs, width, neurons, **fields)


def task_of(module, **fields):
    """The task that has this network."""
    biases = {"in_bias": module.in_bias, "out_bias": module.out_bias}
    own = task(
        module.num_features,
        module.d_resid,
        module.neurons,
        activation=module.activation,
        output_activation=module.output_activation,
        **biases,
        **fields,
    )
    assert own.module == module
    return own


def init(own):
    return jax.jit(own.init)(jax.random.key(0))


def literal(params, x, activation, output_activation):
    """The residual stream, one layer after another."""
    act = ACTIVATIONS[activation]
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    residual = x @ params["W_E"]
    for layer in sorted(name for name in params if name.startswith("layers_")):
        read, write = params[layer]["mlp_in"], params[layer]["mlp_out"]
        hidden = act(residual @ read["kernel"] + read.get("bias", 0))
        residual = residual + hidden @ write["kernel"] + write.get("bias", 0)
    output = residual @ params["W_U"]
    return act(output) if output_activation else output


class FormulaTest(parameterized.TestCase):
    @parameterized.parameters(
        (1, False, "relu", False),
        (2, True, "gelu", True),
        (3, True, "relu", False),
        (3, False, "gelu", False),
    )
    def test_module_and_reassociated_products(self, layers, bias, activation, on_output):
        module, params = networks.resid_mlp(layers, bias, activation)
        module = module.clone(output_activation=on_output)
        x = networks.normal(99, 7, 4)
        expected = literal(params, np.asarray(x), activation, on_output)
        scale = np.abs(expected).max()
        own = task_of(module)
        both = jax.jit(lambda params, x: (own.target(params)(x), own._outputs(params, x)))
        for found in both(params, x):
            np.testing.assert_allclose(found, expected, atol=1e-5 * scale)

    def test_biases_before_and_after_the_nonlinearity(self):
        for in_bias, out_bias in ((True, False), (False, True)):
            own = task(in_bias=in_bias, out_bias=out_bias)
            layer = jax.eval_shape(own.init, jax.random.key(0))["layers_0"]
            self.assertEqual("bias" in layer["mlp_in"], in_bias)
            self.assertEqual("bias" in layer["mlp_out"], out_bias)

    def test_sites(self):
        module, params = networks.resid_mlp(2)
        own = task_of(module)
        layers = ("layers_0/mlp_in", "layers_0/mlp_out", "layers_1/mlp_in", "layers_1/mlp_out")
        expected = [f"{layer}/kernel" for layer in layers]
        self.assertEqual(list(own.target(params).sites), expected)
        self.assertEqual(list(own.hidden_sites), expected[::2])
        self.assertEqual(own.hidden_activation, "relu")


class EmbeddingTest(parameterized.TestCase):
    def test_random_rows_have_unit_norm(self):
        own = task()
        params = init(own)
        lengths = np.linalg.norm(params["W_E"], axis=1)
        np.testing.assert_allclose(lengths, np.ones(4), rtol=1e-6)
        np.testing.assert_array_equal(params["W_U"], params["W_E"].T)
        self.assertEqual([name for name in params if own.is_trained(name)], ["layers_0"])

    def test_identity(self):
        own = task(width=4, embedding="identity")
        params = init(own)
        np.testing.assert_array_equal(params["W_E"], np.eye(4))
        np.testing.assert_array_equal(params["W_U"], np.eye(4))
        self.assertFalse(own.is_trained("W_E"))

    def test_trained(self):
        own = task(embedding="trained")
        params = init(own)
        self.assertTrue(all(own.is_trained(name) for name in params))
        self.assertGreater(np.abs(params["W_E"] - params["W_U"].T).min(), 0)

    def test_start_of_the_matrices(self):
        layer = init(task(40, 60, (50,)))["layers_0"]
        for name in ("mlp_in", "mlp_out"):
            bound = math.sqrt(6 / (60 * 50))
            kernel = np.asarray(layer[name]["kernel"])
            self.assertBetween(np.abs(kernel).max(), 0.99 * bound, bound)
            self.assertAlmostEqual(kernel.std(), bound / math.sqrt(3), delta=0.03 * bound)


class LabelTest(parameterized.TestCase):
    x = np.array([[-1.0, 0.0, 0.5, 2.0]], np.float32)

    @parameterized.parameters(
        ("act_plus_residual", "relu", [[-1, 0, 1, 4]]),
        ("act_plus_residual", "gelu", [[-1.1586553, 0, 0.8457312, 3.9544997]]),
        ("abs", "relu", [[1, 0, 0.5, 2]]),
    )
    def test_kinds(self, kind, activation, expected):
        own = task(activation=activation, label_kind=kind)
        np.testing.assert_allclose(own.labels(self.x), expected, rtol=1e-5)

    @parameterized.parameters("act_plus_residual", "abs")
    def test_coefficients(self, kind):
        own = task(label_kind=kind, label_seed=3)
        c = np.asarray(own.label_coefficients)
        self.assertEqual(c.shape, (4,))
        self.assertTrue(np.all((c >= 1) & (c <= 2)))
        self.assertGreater(np.ptp(c), 0.01)
        scaled = c * self.x
        expected = np.abs(scaled) if kind == "abs" else np.maximum(scaled, 0) + self.x
        np.testing.assert_allclose(own.labels(self.x), expected, rtol=1e-6)

    def test_importance(self):
        module, params = networks.resid_mlp(1)
        weights = (1.0, 0.0, 2.0, 0.5)
        x = networks.normal(0, 9, 4)
        plain, weighted = task_of(module), task_of(module, importance=weights)
        errors = np.square(np.asarray(plain._outputs(params, x)) - np.asarray(plain.labels(x)))
        np.testing.assert_allclose(plain.loss(params, x), errors.mean(), rtol=1e-5)
        np.testing.assert_allclose(
            weighted.loss(params, x), (errors * np.array(weights)).mean(), rtol=1e-5
        )

    @parameterized.parameters(
        ({"embedding": "eye"}, "embedding must be .+ got 'eye'"),
        ({"embedding": "identity"}, "needs d_resid == num_features, got 6 and 4"),
        ({"label_kind": "relu"}, "label_kind must be .+ got 'relu'"),
        ({"importance": (1.0, 1.0)}, "importance needs one value .+ 4 features, got 2"),
        ({"importance": (1.0, -1.0, 1.0, 1.0)}, "importance .+ none negative .+ -1.0"),
        (
            {"importance": (1.0, float("nan"), 1.0, 1.0)},
            "each of importance must be a finite number.+ nan",
        ),
        ({"importance": (0.0,) * 4}, "importance .+ not all 0"),
        ({"neurons": ()}, "needs a width per layer"),
        ({"activation": "tanh"}, "activation must be one of .+ got 'tanh'"),
    )
    def test_bad_arguments(self, fields, message):
        with self.assertRaisesRegex(ValueError, message):
            task(**fields)


class TrainingTest(parameterized.TestCase):
    @parameterized.parameters("random", "trained")
    @pytest.mark.slow
    def test_reduces_the_loss_and_leaves_fixed_embeddings_alone(self, embedding):
        own = task(neurons=(4,), embedding=embedding)
        training = TargetTraining(steps=100, batch_size=32, learning_rate=0.02, schedule="cosine")
        seeds = jnp.array([3], jnp.uint32)
        trainer = pretraining.TargetTrainer(own, training, seeds)
        start = trainer.init_state()
        before = jax.tree.map(np.array, start.params)
        first = pretraining.final_loss(own, start.params, seeds, batch_size=256, batches=2)
        after = loop.run_steps(trainer, start, chunk_steps=100)
        last = pretraining.final_loss(own, after.params, seeds, batch_size=256, batches=2)
        self.assertLess(float(last[0]), 0.5 * float(first[0]))
        changed = not np.array_equal(after.params["W_E"], before["W_E"])
        self.assertEqual(changed, embedding == "trained")


if __name__ == "__main__":
    absltest.main()
