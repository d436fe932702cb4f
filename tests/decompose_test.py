"""Decomposing one's own network: plain functions, Flax modules, tied matrices, sequences."""

import functools
import pathlib
import tempfile
import warnings

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.objective.coefficients import Routes
from apd_jax.objective.objective import Objective
from apd_jax.runtime import loop
from apd_jax.studies import pretraining
from apd_jax.studies.task import TargetTraining
from apd_jax.studies.tms.network import TMSTask
from apd_jax.training.config import Settings
from apd_jax.training.trainer import Trainer

# Two steps of a tiny decomposition: enough to compile and run everything.
TINY = {"num_components": 3, "topk": 1.0, "steps": 2, "batch_size": 8, "rank": 2}


def inputs(key, batch_size):
    return jax.random.normal(key, (batch_size, 3))


def tied(params, x):
    """A matrix used forwards and backwards."""
    return jax.nn.relu(x @ params["embed"]) @ params["embed"].T


def recurrent(params, x):
    """[B, T, d]: the same matrix at every place of a scan; the last state is the output."""

    def place(state, token):
        state = jnp.tanh(state @ params["w"] + token)
        return state, None

    return jax.lax.scan(place, jnp.zeros_like(x[:, 0]), jnp.swapaxes(x, 0, 1))[0]


class Module(nn.Module):
    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (4, 2))
        return nn.gelu(nn.Dense(4, name="encoder")(x)) @ scale


def make_module():
    module = Module()
    variables = module.init(jax.random.key(0), jnp.ones((1, 3)))
    return module, apd_jax.Target.from_flax(module, variables)


class Watch(loop.Observer):
    """Writes down what it is told; asks to stop when all is done."""

    def __init__(self):
        self.told = []

    def on_metrics(self, step, metrics):
        assert metrics["loss/total"].shape == (1,)
        self.told.append(step)

    def save(self, step, state):
        self.told.append(f"saved at {step}")

    def should_stop(self):
        return len(self.told) == 3


def untrained(target, **fields):
    """A decomposition that was not trained."""
    fields = {"coefficients": apd_jax.Coefficients(minimality=1.0), "topk": 1.0} | fields
    settings = apd_jax.Settings(
        objective=apd_jax.Objective(**fields),
        num_components=3,
        steps=2,
        batch_size=8,
        learning_rate=0.01,
        rank=2,
    )
    history = [{"step": 2, "loss/total": 0.5}]
    return apd_jax.Decomposition(target, networks.components(target), settings, history)


class DecomposeTest(parameterized.TestCase):
    @pytest.mark.slow
    def test_ten_lines_on_a_plain_function(self):
        def network(params, x):
            return jax.nn.relu(x @ params["w1"]) @ params["w2"]

        params = {"w1": networks.normal(0, 3, 4), "w2": networks.normal(1, 4, 2)}
        target = apd_jax.Target(network, params, sites=["w1"])
        observer = Watch()
        found = apd_jax.decompose(
            target,
            inputs,
            num_components=4,
            topk=2,
            steps=60,
            chunk_steps=20,
            learning_rate=0.03,
            relative_rate=False,
            relative_losses=False,
            coefficients={"simplicity": 1.0},
            observer=observer,
        )
        self.assertEqual(observer.told, [20, 40, 60, "saved at 60"])
        x = inputs(jax.random.key(1), 5)
        self.assertEqual(found(x).shape, (5, 2))
        self.assertEqual(found.attributions(x).shape, (5, 4))
        self.assertEqual(int(found.mask(x).sum()), 10)
        self.assertEqual([row["step"] for row in found.history], [20, 40, 60])
        self.assertLess(
            found.history[-1]["loss/faithfulness"], 0.05 * float(jnp.mean(params["w1"] ** 2))
        )

    @parameterized.named_parameters(
        ("tied", lambda: apd_jax.Target(tied, {"embed": networks.normal(0, 3, 2)}, ["embed"])),
        ("flax", lambda: make_module()[1]),
        ("scan", lambda: apd_jax.Target(recurrent, {"w": networks.normal(0, 3, 3)}, ["w"]), 4),
    )
    @pytest.mark.slow
    def test_networks(self, make_target, places=None):
        def sample(key, batch_size):
            shape = (batch_size, 3) if places is None else (batch_size, places, 3)
            return jax.random.normal(key, shape)

        target = make_target()
        found = apd_jax.decompose(target, sample, **TINY)
        x = sample(jax.random.key(3), 6)

        @jax.jit
        def both(x):
            scores = networks.literal_attributions(target, found.components, x, "target")
            mask = found.mask(x)
            masked = networks.literal_masked(target, found.components, x, mask)
            return (found.attributions(x), found(x)), (scores, masked)

        chex.assert_trees_all_close(*both(x), rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_options_and_a_jitted_network(self):
        plain = networks.mlp()
        target = apd_jax.Target(jax.jit(networks.mlp_apply), plain.params)
        found = apd_jax.decompose(
            target,
            inputs,
            **TINY,
            unit_norm=True,
            attribution_source="components",
            hidden_sites=("first/w",),
            coefficients=apd_jax.Coefficients(minimality=1.0, activation=1.0),
            schedule="constant",
        )
        objective = found.settings.objective
        self.assertEqual(objective.hidden_sites, ("first/w",))
        self.assertEqual(found.settings.schedule, "constant")
        chex.assert_shape(found.components["first/w"].U, (3, 3, 2))
        lengths = np.linalg.norm(found.components["first/w"].U, axis=1)
        np.testing.assert_allclose(lengths, np.ones((3, 2)), rtol=1e-5)
        names = {"loss/minimality", "loss/activation", "loss/total", "learning_rate", "step"}
        self.assertContainsSubset(names, found.history[0])

    @parameterized.parameters(
        ({"topk": None, "coefficients": apd_jax.Coefficients()}, 12),
        ({"topk": 0.5}, 2),
        ({"topk": 0.5, "attribution_source": "components"}, 2),
        ({"topk": 2.0, "selection": "sample"}, 8),
        ({"selection": "exact"}, 12),
        ({"topk": 0.5, "distil": True}, 6),
    )
    @pytest.mark.slow
    def test_rule_and_source_of_the_training(self, fields, active):
        found = untrained(networks.mlp(), **fields)
        x = networks.normal(0, 4, 3)
        scores, mask = jax.jit(lambda x: (found.attributions(x), found.mask(x)))(x)
        self.assertEqual(int(mask.sum()), active)
        source = fields.get("attribution_source", "target")
        expected = jax.jit(functools.partial(networks.literal_attributions, source=source))(
            found.target, found.components, x
        )
        np.testing.assert_allclose(scores, expected, rtol=1e-4)


class PrecisionTest(parameterized.TestCase):
    """GPUs and TPUs round the factors of a product unless told not to; CPUs can't show it."""

    def products(self, step, *args):
        text = jax.jit(step).lower(*args, jax.random.key(0)).as_text()
        return [line for line in text.splitlines() if "dot_general" in line]

    @parameterized.product(precision=("highest", "default"), route=("dense", "grouped"))
    @pytest.mark.slow
    def test_decomposition(self, precision, route):
        target = networks.mlp()
        coefficients = apd_jax.Coefficients(minimality=1.0, simplicity=1.0, output=1.0)
        objective = Objective(
            coefficients,
            topk=1.0,
            routes=Routes(masked_route=route),
        )
        settings = Settings(
            objective,
            num_components=3,
            steps=1,
            batch_size=8,
            learning_rate=1e-3,
            rank=2,
            matmul_precision=precision,
        )
        trainer = Trainer(settings, loop.stack([target]), inputs, jnp.arange(1))
        state = loop.pick(trainer.init_state(), 0)
        products = self.products(trainer.step, target, state)
        short = [line for line in products if "[HIGHEST, HIGHEST]" not in line]
        self.assertGreater(len(products), 10)
        self.assertEqual(bool(short), precision == "default")

    def test_target_training(self):
        task = TMSTask(SparseFeatures(4, 0.5), num_hidden=2, hidden_layers=1)
        training = TargetTraining(1, batch_size=8, learning_rate=0.1, schedule="constant")
        trainer = pretraining.TargetTrainer(task, training, jnp.arange(1))
        state = loop.pick(trainer.init_state(), 0)
        products = self.products(trainer.step, None, state)
        self.assertNotEmpty(products)
        for line in products:
            self.assertIn("[HIGHEST, HIGHEST]", line)


class BadInputTest(parameterized.TestCase):
    """Refused before any training: the sample function is never called with the batch size."""

    @parameterized.parameters(
        ({"num_components": 0}, "num_components must be at least 1, got 0"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"rank": 1.5}, "rank must be a whole number below 2.*31 or None, got 1.5"),
        ({"seed": -1}, r"seed must be a whole number in \[0, 2\*\*32\), got -1"),
        ({"seed": 2**32}, r"seed must be a whole number in \[0, 2\*\*32\)"),
        ({"learning_rate": float("inf")}, "learning_rate must be a finite number, got inf"),
        ({"unit_norm": "yes"}, "unit_norm must be True or False, got 'yes'"),
        ({"num_components": 1, "distil": True}, "distil needs num_components of at least 2, got 1"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"chunk_steps": 0}, "chunk_steps must be at least 1, got 0"),
        ({"topk": 0.1}, "k=0.1 selects nothing"),
        ({"topk": 3.5}, "topk must be at most num_components .3., got 3.5"),
        ({"topk": None}, "need a top-k selection"),
        ({"topk": "Auto"}, "topk must be a finite number, 'auto' or None, got 'Auto'"),
        ({"topk": [1]}, r"topk must be a finite number, 'auto' or None, got \[1\]"),
        ({"topk": True}, "topk must be a finite number, 'auto' or None, got True"),
        ({"topk": np.nan}, "topk must be a finite number, 'auto' or None, got nan"),
        ({"coefficients": {0: 1.0}}, "coefficients: .* has no field 0: names are text; there are"),
        ({"schedules": {None: "0:1"}}, "schedules: .* None"),
        ({"refine": {("every",): 1}}, r"refine: .* has no field \('every',\): names are text"),
        ({"learning_rate": -1.0}, "learning_rate must be positive and finite, got -1.0"),
        ({"init_scale": 0.0}, "init_scale must be positive, got 0.0"),
        ({"init_instances": 0}, "init_instances must be at least 1, got 0"),
        ({"hidden_sites": ("third",)}, "no site 'third'; the sites are .+'first/w'"),
        ({"attribution_mode": "fast"}, "attribution_mode must be one of"),
        ({"observer": 3}, "observer must be an Observer.* got 3"),
        ({"observer": apd_jax.Observer}, "observer must be an Observer.* got <class"),
        ({"other": 3}, "other: data must be a sampling function"),
    )
    def test_settings(self, options, message):
        def sample(key, batch_size):
            self.assertEqual(batch_size, 3)
            return inputs(key, batch_size)

        with self.assertRaisesRegex(ValueError, message):
            apd_jax.decompose(networks.mlp(), sample, **(TINY | options))

    @parameterized.parameters(
        (lambda leaf: leaf * np.nan, "init must hold finite real numbers; at 'first/w' .* NaN"),
        (lambda leaf: leaf.astype(complex), "at 'first/w' there are complex64"),
        (lambda leaf: leaf.astype(int), "at 'first/w' there are int32"),
    )
    def test_init(self, change, message):
        init = jax.tree.map(change, networks.components(networks.mlp(), 3, 2))
        with self.assertRaisesRegex(ValueError, message):
            apd_jax.decompose(networks.mlp(), inputs, **TINY, init=init)

    def test_inside_a_traced_function(self):
        for trace in (jax.jit, jax.vmap, jax.grad):
            with self.assertRaisesRegex(ValueError, "can't be traced: call it outside of jit"):
                trace(lambda x: apd_jax.decompose(networks.mlp(), x, **TINY))(jnp.ones((8, 3)))

    def test_an_iterator_of_batches_is_no_pytree_for_jax(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with self.assertRaisesRegex(ValueError, "the data ended after 1 batches"):
                apd_jax.decompose(networks.mlp(), iter([np.ones((8, 3), np.float32)]), **TINY)

    @parameterized.parameters(
        (lambda p, x: 1e25 * x @ p["w"], 1.0, r"returns outputs up to .*e\+2., whose squares"),
        (lambda p, x: x @ p["w"], 1e25, r"site 'w' has weights up to .*e\+2., whose squares"),
    )
    def test_numbers_beyond_the_squares_of_float32(self, network, scale, message):
        target = apd_jax.Target(network, {"w": scale * networks.normal(0, 3, 2)})
        with self.assertRaisesRegex(ValueError, message):
            apd_jax.decompose(target, inputs, **TINY)

    def test_unknown_option(self):
        for name, near in (("rnk", "rank"), ("work_dir", "workdir")):
            message = f"decompose has no option '{name}'; did you mean '{near}'"
            with self.assertRaisesRegex(ValueError, message):
                apd_jax.decompose(networks.mlp(), inputs, **TINY, **{name: 1})

    @parameterized.named_parameters(
        ("unused", lambda p, x: x @ p["a"], r"b \[3, 3\]: the outputs don't depend on it"),
        ("scaled", lambda p, x: x @ p["b"] @ (2 * p["a"]), r"a \[3, 3\]: mul is not a product"),
        (
            "outputs",
            lambda p, x: jnp.sum(x @ p["b"] @ p["a"]),
            r"must return outputs \[B, \.\.\.\]",
        ),
    )
    def test_networks(self, network, message):
        target = apd_jax.Target(network, {"a": jnp.eye(3), "b": jnp.eye(3)}, ["a", "b"])
        with self.assertRaisesRegex(ValueError, message):
            apd_jax.decompose(target, inputs, **TINY)


class SaveTest(parameterized.TestCase):
    @parameterized.parameters("function", "module")
    def test_round_trip(self, kind):
        if kind == "module":
            network, target = make_module()
        else:
            network, target = networks.mlp_apply, networks.mlp()
        target.at(jnp.ones((1, 3)))
        found = untrained(target, hidden_sites=tuple(target.sites)[:1])
        with tempfile.TemporaryDirectory() as folder:
            directory = pathlib.Path(folder) / "saved"
            found.save(directory)
            names = sorted(path.name for path in directory.iterdir())
            self.assertEqual(names, ["components.safetensors", "config.json", "orbax"])
            loaded = apd_jax.load(directory, network)
        self.assertEqual(loaded.settings, found.settings)
        self.assertEqual(loaded.history, found.history)
        self.assertEqual(list(loaded.components), list(target.sites))
        chex.assert_trees_all_equal(loaded.components, found.components)
        x = inputs(jax.random.key(0), 4)
        np.testing.assert_array_equal(loaded(x), found(x))

    def test_nothing_there(self):
        with self.assertRaisesRegex(ValueError, "holds no saved components"):
            apd_jax.load("/nowhere", networks.mlp_apply)


if __name__ == "__main__":
    absltest.main()
