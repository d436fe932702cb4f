"""Models of Flax and Equinox as targets: the same outputs, and the sites of the traced program."""

import functools
import tempfile

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from flax import nnx

import apd_jax


class _Linen(nn.Module):
    @nn.compact
    def encode(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(4, name="first")(x))
        return nn.Dense(2, name="second")(nn.relu(x))

    def __call__(self, x, train):
        return self.encode(x, train) ** 2


class _Nnx(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs))
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.rnn(x))


class AdaptersTest(absltest.TestCase):
    x = jax.random.normal(jax.random.key(0), (4, 5, 3))

    def check(self, target, expected, names):
        self.assertEqual(list(target.sites), names)
        np.testing.assert_allclose(target(self.x), expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(jax.jit(target)(self.x), expected, rtol=1e-5, atol=1e-5)
        apd_jax.check_target(target, self.x)

    def test_linen_with_other_collections_method_and_keywords(self):
        module = _Linen()
        variables = module.init(jax.random.key(1), self.x, train=False)
        target = apd_jax.Target.from_flax(
            module, variables, method="encode", inputs=self.x, train=False
        )
        expected = module.apply(variables, self.x, train=False, method="encode")
        self.check(target, expected, ["first/kernel", "second/kernel"])

    def test_linen_batch_statistics_in_training_are_refused(self):
        module = _Linen()
        variables = module.init(jax.random.key(1), self.x, train=False)
        apply = lambda params, x: module.apply(  # noqa: E731
            {**variables, "params": params}, x, train=True, mutable="batch_stats"
        )[0]
        target = apd_jax.Target(apply, variables["params"], inputs=self.x)
        with self.assertRaisesRegex(apd_jax.errors.UserError, "depends on the other examples"):
            apd_jax.check_target(target, self.x)

    @pytest.mark.slow
    def test_nnx_model_with_state_of_its_own(self):
        model = _Nnx(nnx.Rngs(0))
        target = apd_jax.Target.from_nnx(model, inputs=self.x)
        names = [f"rnn/cell/dense_{part}/kernel/value" for part in "hi"]
        self.check(target, model(self.x), names)

    @pytest.mark.slow
    def test_equinox_model_of_one_example(self):
        key = jax.random.key(2)
        model = eqx.nn.Sequential(
            [eqx.nn.Lambda(jnp.ravel), eqx.nn.MLP(15, "scalar", 4, 1, key=key)]
        )
        target = apd_jax.Target.from_equinox(model, inputs=self.x)
        names = [f"layers/1/layers/{layer}/weight" for layer in range(2)]
        self.check(target, jax.vmap(model)(self.x), names)
        self.assertIn("(equinox/nn/_linear.py:", str(target.sites))  # not where it is installed


class _Table(eqx.Module):
    """A model with an array that is no parameter."""

    columns: jax.Array
    linear: eqx.nn.Linear

    def __init__(self, columns, key):
        self.columns, self.linear = jnp.asarray(columns), eqx.nn.Linear(2, 2, key=key)

    def __call__(self, x):
        return self.linear(x[:, self.columns].mean(axis=0))


class _NnxStatistics(nnx.Module):
    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.norm.mean[...] += seed

    def __call__(self, x):
        return self.drop(self.norm(self.first(x)))


class LoadTest(absltest.TestCase):
    """What is fixed of a model is saved with its decomposition, and put into the one given."""

    x = AdaptersTest.x

    def check(self, target, *models):
        components = apd_jax.init_components(jax.random.key(3), target, num_components=2, rank=1)
        objective = apd_jax.Objective(coefficients=apd_jax.Coefficients(minimality=1.0), topk=1.0)
        settings = apd_jax.Settings(objective=objective, num_components=2)
        made = apd_jax.Decomposition(target, components, settings, example=self.x)
        directory = self.enterContext(tempfile.TemporaryDirectory())
        made.save(directory)
        for model in models:
            loaded = apd_jax.load(directory, model)
            np.testing.assert_allclose(loaded.target(self.x), target(self.x), rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(loaded(self.x), made(self.x), rtol=1e-5, atol=1e-6)
        return directory

    def test_linen_with_batch_statistics_a_method_and_a_keyword(self):
        module = _Linen()
        variables = module.init(jax.random.key(1), self.x, train=False)
        variables["batch_stats"]["norm"]["mean"] += 1
        make = functools.partial(
            apd_jax.Target.from_flax, module, method="encode", inputs=self.x, train=False
        )
        other = make(variables=module.init(jax.random.key(2), self.x, train=False))
        directory = self.check(make(variables=variables), module, _Linen(), other)
        with self.assertRaisesRegex(apd_jax.UserError, "the method 'encode' .* Target.from_flax"):
            apd_jax.load(directory, nn.Dense(2))

    def test_linen_with_a_keyword_that_is_code(self):
        class Net(nn.Module):
            @nn.compact
            def __call__(self, x, activation):
                return activation(nn.Dense(2)(x))

        variables = Net().init(jax.random.key(1), self.x, nn.relu)
        target = apd_jax.Target.from_flax(Net(), variables, inputs=self.x, activation=nn.relu)
        directory = self.check(target, target)
        with self.assertRaisesRegex(apd_jax.UserError, "activation was a .*, which is not saved"):
            apd_jax.load(directory, Net())

    def test_nnx_with_batch_statistics(self):
        model = _NnxStatistics(1)
        before = jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat))
        target = apd_jax.Target.from_nnx(model, inputs=self.x)
        self.check(target, _NnxStatistics(2), apd_jax.Target.from_nnx(_NnxStatistics(3)))
        after = jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat))
        jax.tree.map(np.testing.assert_array_equal, after, before)

    def test_equinox_with_an_array_that_is_no_parameter(self):
        one, other = (_Table(c, jax.random.key(c[0])) for c in ([1, 0], [2, 1]))
        directory = self.check(apd_jax.Target.from_equinox(one, inputs=self.x), other)
        with self.assertRaisesRegex(apd_jax.UserError, "differ from the saved ones"):
            apd_jax.load(directory, _Table([0, 1, 2], jax.random.key(0)))


if __name__ == "__main__":
    absltest.main()
