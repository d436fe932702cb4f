"""Relative losses: the values of no component, and independence of the units of weights."""

import handmade
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from apd_jax.components import Factors
from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.objective.coefficients import Coefficients
from apd_jax.objective.normalisation import scales
from apd_jax.objective.objective import Objective
from apd_jax.runtime import loop
from apd_jax.training.config import Settings
from apd_jax.training.trainer import Trainer

INPUTS = SparseFeatures(4, 0.3, (-1.0, 1.0))
SITES = ("layers_0/mlp_in/kernel", "layers_0/mlp_out/kernel")
OBJECTIVE = Objective(
    Coefficients(1.0, 1.0, 1.0, activation=1.0, output=1.0),
    topk=1.0,
    hidden_sites=SITES[:1],
    hidden_activation="relu",
)


class ScalesTest(parameterized.TestCase):
    def test_values_by_hand(self):
        target = handmade.exact_resid_mlp()
        x = INPUTS(jax.random.key(0), 512)
        found = jax.jit(scales, static_argnums=0)(OBJECTIVE, target, x)
        hidden = np.mean(np.square(np.maximum(x, 0)))
        np.testing.assert_allclose(found["faithfulness"], 8 / 32, rtol=1e-5)
        np.testing.assert_allclose(found["minimality"], hidden, rtol=1e-5)
        np.testing.assert_allclose(found["output"], hidden, rtol=1e-5)
        np.testing.assert_allclose(found["activation"], hidden, rtol=1e-5)
        np.testing.assert_allclose(found["simplicity"], 8 / 32, rtol=1e-5)

    @parameterized.parameters(0.1, 30.0)
    @pytest.mark.slow
    def test_losses_are_the_same_in_other_units(self, unit):
        settings = Settings(OBJECTIVE, num_components=6, batch_size=64, relative_losses=True)
        totals = []
        for scale in (1.0, unit):
            target = handmade.resid_mlp([np.eye(4) * scale], [np.eye(4) / 2 * scale])
            targets, seeds = loop.stack([target]), jnp.zeros(1, jnp.uint32)
            state = loop.pick(Trainer(settings, targets, INPUTS, seeds).init_state(), 0)
            components = handmade.neuron_components(np.eye(6, 4) * 0.9 * scale)
            name = SITES[1]
            components[name] = Factors(components[name].reads / 2, components[name].writes)
            x, units = INPUTS(jax.random.key(0), 64), settings.multipliers(state).losses
            terms, _ = jax.jit(OBJECTIVE.terms)(target, components, x)
            relative = {n: float(v * units[n]) for n, v in terms.items() if n != "simplicity"}
            totals.append(relative)
        for name, value in totals[0].items():
            np.testing.assert_allclose(totals[1][name], value, rtol=1e-3)


if __name__ == "__main__":
    absltest.main()
