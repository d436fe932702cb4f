"""Comparison of arrays that are computed in two ways, with numbers that are not finite."""

import jax.numpy as jnp
import networks
import numpy as np
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.decomposition import checks
from apd_jax.errors import UserError
from apd_jax.sites.closeness import close

INF, NAN = np.inf, np.nan


class CloseTest(parameterized.TestCase):
    @parameterized.parameters(
        ([1.0, 2.0], [1.0, 2.001], True),
        ([1.0, 2.0], [1.0, 2.1], False),
        ([-INF, 2.0], [-INF, 2.001], True),
        ([-INF, 2.0], [-INF, 2.1], False),
        ([-INF, 2.0], [1.0, 2.0], False),
        ([1.0, 2.0], [INF, 2.0], False),
        ([INF], [-INF], False),
        ([NAN, NAN], [NAN, INF], True),
        ([NAN], [1.0], False),
        ([complex(INF, 1)], [complex(1, 1)], False),
        ([], [], True),
    )
    def test_both_ways(self, first, second, expected):
        self.assertEqual(close(first, second, 1e-2), expected)
        self.assertEqual(close(second, first, 1e-2), expected)

    def test_a_network_that_rules_out_by_the_batch(self):
        def network(params, x):
            logits = x @ params["w"]
            return jnp.where(logits >= logits.mean(axis=0), logits, -jnp.inf)

        x = jnp.array([[0.0, 0], [1, 1], [-1, -1], [2, 3]])
        target = apd_jax.Target(network, {"w": jnp.abs(networks.normal(1, 2, 3))})
        with self.assertRaisesRegex(UserError, "depends on the other examples"):
            checks.check_target(target, x, apd_jax.Objective(minimality_loss="kl"))


if __name__ == "__main__":
    absltest.main()
