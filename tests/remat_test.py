"""Masked passes that are computed again for the gradient: the same numbers, in less memory."""

import dataclasses
import functools

import jax
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from apd_jax.objective.coefficients import Coefficients, Routes
from apd_jax.objective.objective import Objective

OBJECTIVE = Objective(Coefficients(minimality=1.0, partial=0.5), topk=2.0)


@functools.cache
def network():
    target, x = networks.mlp(d_in=16, hidden=32, outputs=8), networks.normal(1, 64, 16)
    target = target.at(x)
    return target, networks.components(target, 24, 4), x


def loss(remat, route):
    """The loss as a function of the components."""
    target, _, x = network()
    routes = Routes(remat=remat, masked_route=route)
    objective = dataclasses.replace(OBJECTIVE, routes=routes)
    return lambda components: objective.total(objective.terms(target, components, x)[0])


@functools.cache
def compiled(remat, route):
    return jax.jit(jax.value_and_grad(loss(remat, route))).lower(network()[1]).compile()


class RematTest(parameterized.TestCase):
    @parameterized.product(remat=("sites", "all"), route=("dense", "grouped"))
    @pytest.mark.slow
    def test_same_loss_and_gradient(self, remat, route):
        expected, found = (compiled(r, route)(network()[1]) for r in ("none", remat))
        for one, other in zip(*map(jax.tree.leaves, (expected, found)), strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * np.max(np.abs(one)))

    @parameterized.parameters(("sites", 1), ("all", 0))
    def test_what_is_kept(self, remat, outputs):
        """Nothing as large as all components' products is, and outputs of sites where asked for."""
        components = network()[1]
        residuals = jax.eval_shape(lambda c: jax.vjp(loss(remat, "dense"), c)[1], components)
        whole = jax.eval_shape(lambda c: jax.vjp(loss("none", "dense"), c)[1], components)
        product = 64 * 24 * 4
        sizes, kept = ([leaf.size for leaf in jax.tree.leaves(r)] for r in (whole, residuals))
        self.assertGreater(sizes.count(product), 2)
        self.assertLessEqual(kept.count(product), 0)
        self.assertEqual(min(kept.count(64 * 32), 1), outputs)


if __name__ == "__main__":
    absltest.main()
