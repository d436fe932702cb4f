"""Micro-batches of a step give what the whole batch gives."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import networks
import padded
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.errors import UserError
from apd_jax.objective import gates
from apd_jax.objective.coefficients import CONSTANT, Coefficients, Multipliers, Routes
from apd_jax.objective.objective import Objective
from apd_jax.training.config import Settings
from apd_jax.training.optimizers import decomposition_optimizer
from apd_jax.training.step import init_state, train_step

OBJECTIVE = Objective(
    Coefficients(faithfulness=1, minimality=2, simplicity=0.5, activation=1, output=1),
    topk=1.3,
    hidden_sites=("first/w",),
)
OPTIMIZER = decomposition_optimizer(lambda step: 1e-2)


def steps(objective, target, components, *numbers):
    """A function that steps from the same state with each number of micro-batches."""

    @jax.jit
    def run(components, x, multipliers=CONSTANT):
        state, key = init_state(components, OPTIMIZER), jax.random.key(0)
        return [
            train_step(objective, OPTIMIZER, target, state, x, key, multipliers, accumulate)
            for accumulate in numbers
        ]

    return functools.partial(run, components)


class StepTest(parameterized.TestCase):
    @parameterized.parameters(
        (OBJECTIVE, None),
        (dataclasses.replace(OBJECTIVE, distil=True, routes=Routes(masked_route="grouped")), 0.6),
        (dataclasses.replace(OBJECTIVE, topk=None,
            coefficients=Coefficients(lp_minimality=1, lp_simplicity=0.5)), None),
    )  # fmt: skip
    @pytest.mark.slow
    def test_equals_the_whole_batch(self, objective, factor):
        target, _ = networks.make("mlp")
        x, own = networks.normal(3, 12, 3), networks.components(target)
        multipliers = Multipliers(None if factor is None else jnp.float32(factor))
        whole, parts = steps(objective, target, own, 1, 3)(x, multipliers)
        chex.assert_trees_all_close(parts, whole, rtol=1e-4, atol=1e-6)

    @parameterized.parameters(False, True)
    @pytest.mark.slow
    def test_gates_learn_from_the_whole_batch(self, some_count):
        """L0 is penalised where it is too large in the whole batch, not in a micro-batch."""
        target, _ = networks.make("mlp")
        x = networks.normal(3, 12, 3) * jnp.array([0.3] * 4 + [1] * 4 + [3] * 4)[:, None]
        objective = Objective(
            Coefficients(faithfulness=1, minimality=1, partial=0, l0=1),
            topk=1.0,
            selection="gates",
            valid=(lambda x: x[:, 0] > -0.5) if some_count else None,
        )
        wide = dataclasses.replace(objective, topk=1.3)
        start = jax.jit(lambda components: gates.start(wide, target, x, components))
        run = steps(objective, target, start(networks.components(target)), 1, 3)
        for size, expected in ((1.0, self.assertGreater), (0.5, self.assertEqual)):
            whole, parts = run(size * x)
            expected(float(whole[1]["loss/l0"]), 0)
            chex.assert_trees_all_close(parts, whole, rtol=1e-4, atol=1e-6)

    @parameterized.parameters(True, False)
    @pytest.mark.slow
    def test_weighs_micro_batches_by_what_counts(self, per_position):
        target, x = padded.network(causal=True), padded.batch("left", count=6)
        for row, first in enumerate((3, 4, 5, 6, 6, 7)):  # the last has none
            x["mask"][row] = jnp.arange(padded.PADDED) >= first
        own = apd_jax.init_components(jax.random.key(3), target, num_components=6, rank=2)
        objective = dataclasses.replace(
            OBJECTIVE, hidden_sites=("v",), per_position=per_position, valid=padded.valid
        )
        whole, parts = steps(objective, target, own, 1, 3)(x)
        chex.assert_trees_all_close(parts, whole, rtol=1e-4, atol=1e-6)
        wrong = dataclasses.replace(objective, valid=None)
        self.assertNotAlmostEqual(
            float(steps(wrong, target, own, 1)(x)[0][1]["loss/minimality"]),
            float(whole[1]["loss/minimality"]),
            places=3,
        )

    @pytest.mark.slow
    def test_selects_in_the_whole_batch(self):
        """One micro-batch holds all the active pairs."""
        target, _ = networks.make("mlp")
        x = networks.normal(3, 8, 3).at[:4].multiply(1e-3)
        objective = dataclasses.replace(OBJECTIVE, topk=0.5)
        own = networks.components(target)
        whole, parts = steps(objective, target, own, 1, 2)(x)
        chex.assert_trees_all_close(parts, whole, rtol=1e-4, atol=1e-6)

    @pytest.mark.slow
    def test_takes_less_memory(self):
        target = networks.mlp(3, 5, 600)
        own, x = networks.components(target), networks.normal(3, 256, 3)
        objective = dataclasses.replace(OBJECTIVE, routes=Routes("sketch"))
        state = init_state(own, OPTIMIZER)
        used = [
            jax.jit(
                lambda s, n=n: train_step(
                    objective, OPTIMIZER, target, s, x, jax.random.key(0), accumulate=n
                )
            )
            .lower(state)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
            for n in (1, 8)
        ]
        self.assertLess(used[1], used[0] / 3)

    def test_batch_that_does_not_divide(self):
        with self.assertRaisesRegex(UserError, "multiple of accumulate, got 10 and 4"):
            Settings(batch_size=10, accumulate=4)


if __name__ == "__main__":
    absltest.main()
