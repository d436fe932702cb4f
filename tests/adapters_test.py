"""Models of Flax and Equinox as targets: the same outputs, and the sites of the traced program."""

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


if __name__ == "__main__":
    absltest.main()
