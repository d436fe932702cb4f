"""What looks at examples beside the steps: in blocks it gives what it gives at once."""

import functools

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import padded
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax import blocks
from apd_jax.objective.coefficients import CONSTANT, Coefficients, Routes
from apd_jax.objective.normalisation import scales
from apd_jax.objective.objective import Objective
from apd_jax.training.initialisation import STARTS
from apd_jax.training.optimizers import decomposition_optimizer
from apd_jax.training.refine import rounds
from apd_jax.training.refine.activity import look
from apd_jax.training.refine.rules import Rules
from apd_jax.training.step import init_state, train_step

OBJECTIVE = Objective(
    Coefficients(faithfulness=1, minimality=2, simplicity=0.5, output=1, activation=1),
    selection="sample",  # whatever the blocks
    topk=2.0,
    hidden_sites=("first/w",),
)


@functools.partial(jax.jit, static_argnums=(0, 3))
def measured(objective, target, x, size):
    return scales(objective, target, x, block_size=size)


class BlocksTest(parameterized.TestCase):
    def test_covers_the_examples(self):
        x = jnp.arange(11.0)
        for size, count in ((4, 10), (3, 9), (11, 11), (20, 11), (None, 11)):
            found = blocks.joined(blocks.over_blocks(lambda part: 2 * part, x, size))
            np.testing.assert_array_equal(found, 2 * x[:count])

    def test_scales(self):
        target, _ = networks.make("mlp")
        x = networks.normal(3, 12, 3)
        found = [measured(OBJECTIVE, target, x, size) for size in (None, 12, 4)]
        chex.assert_trees_all_equal(found[0], found[1])
        chex.assert_trees_all_close(found[0], found[2], rtol=1e-5)

    def test_scales_of_blocks_in_which_not_everything_counts(self):
        target, x = padded.network(causal=True), padded.batch("left", count=6)
        x["mask"][:3] = np.arange(padded.PADDED) > 5
        x["mask"][3] = 0
        objective = Objective(Coefficients(minimality=1), valid=padded.valid)
        found = [measured(objective, target, x, size) for size in (None, 2)]
        chex.assert_trees_all_close(*found, rtol=1e-5)

    @pytest.mark.slow
    def test_start(self):
        target, _ = networks.make("mlp")
        x, own = networks.normal(3, 64, 3), networks.components(target)
        start = jax.jit(STARTS["partitioned"], static_argnums=(0, 4))
        found = [start(Objective(), target, x, own, size) for size in (None, 16)]
        pieces = [{n: f.matrices() for n, f in one.items()} for one in found]
        chex.assert_trees_all_close(*pieces, rtol=1e-3, atol=1e-4)

    @pytest.mark.slow
    def test_start_leaves_out_what_does_not_count(self):
        target, _ = networks.make("mlp")
        x, own = networks.normal(3, 64, 3), networks.components(target)
        more = jnp.concatenate([x, 30 + networks.normal(4, 64, 3)])[
            jnp.arange(128).reshape(2, 64).T.ravel()
        ]
        start = jax.jit(STARTS["partitioned"], static_argnums=0)
        alone = start(Objective(), target, x, own)
        found = start(Objective(valid=lambda x: x[:, 0] < 15), target, more, own)
        pieces = [{n: f.matrices() for n, f in one.items()} for one in (alone, found)]
        chex.assert_trees_all_close(*pieces, rtol=1e-3, atol=1e-4)

    @parameterized.parameters(True, False)
    @pytest.mark.slow
    def test_evidence_of_a_round(self, per_position):
        target, x = padded.network(causal=True), padded.batch("right", count=6)
        own = apd_jax.init_components(jax.random.key(3), target, num_components=4, rank=2)
        objective = Objective(
            Coefficients(minimality=1), selection="sample", topk=2.0, per_position=per_position,
            valid=padded.valid,
        )  # fmt: skip

        @functools.partial(jax.jit, static_argnums=2)
        def looked(x, here, size):
            """What was seen, and the moments of the inputs with the weights of the real rows."""
            seen = look(objective, target, own, x, block_size=size)
            moments = seen.moments(weights[jnp.cumsum(here) - 1] * here, here)
            return seen._replace(moments=None), moments

        alone_x = padded.batch(count=6)
        rows = (6 * padded.REAL,) if per_position else (6,)
        weights = jax.random.uniform(jax.random.key(0), rows)
        mask = np.asarray(padded.valid(x), bool) if per_position else np.ones(6, bool)
        found = [looked(x, mask.ravel(), size) for size in (None, 2)]
        chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-4)
        # The same as of the batch without padding, but for rows that hold nothing.
        alone, moments = looked(alone_x, np.ones(rows, bool), None)
        here = np.asarray(found[0][0].counted, bool)
        np.testing.assert_array_equal(here, mask.ravel())
        for name in ("weights", "errors", "stakes", "directions"):
            padded_, own_ = getattr(found[0][0], name), getattr(alone, name)
            chex.assert_trees_all_close(padded_[here], own_, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(padded_[~here], 0)
        chex.assert_trees_all_close(found[0][1], moments, rtol=1e-4, atol=1e-4)

    @pytest.mark.slow
    def test_moments_of_a_convolution_are_those_of_its_patches(self):
        """Strides, a padding and two groups, by three example sizes of a block."""
        params = {"w": networks.normal(0, 4, 2, 3, 2), "u": networks.normal(1, 4, 3)}

        def apply(p, x):
            h = jax.lax.conv_general_dilated(
                x, p["w"], (2, 1), ((1, 1), (0, 0)), feature_group_count=2
            )
            return jnp.tanh(h).mean((2, 3)) @ p["u"]

        x = networks.normal(2, 6, 4, 5, 4)
        target = apd_jax.Target(apply, params, inputs=x)
        own = apd_jax.init_components(jax.random.key(3), target, num_components=3, rank=1)
        weights = jax.random.uniform(jax.random.key(0), (6,))
        padded_ = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
        expected = np.zeros((2, 12, 12))
        for b, g, i, j in np.ndindex(6, 2, 3, 3):
            patch = padded_[b, 2 * g : 2 * g + 2, 2 * i : 2 * i + 3, j : j + 2].ravel()
            expected[g] += float(weights[b]) * np.outer(patch, patch)
        for size in (None, 2, 1):

            @jax.jit
            def moments(x, size=size):
                seen = look(Objective(topk=1.0), target, own, x, block_size=size)
                once, twice = seen.moments(weights, 2 * weights)
                return once["w"], twice["w"]

            for factor, found in enumerate(moments(x), 1):
                np.testing.assert_allclose(found, factor * expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.slow
    def test_round(self):
        target, _ = networks.make("mlp")
        x, own = networks.normal(3, 64, 3), networks.components(target)
        rules = Rules(share=True)

        @functools.partial(jax.jit, static_argnums=0)
        def move(size):
            return rounds.move(OBJECTIVE, rules, target, own, x, None, CONSTANT, True, size)

        found = [move(size) for size in (None, 16)]
        chex.assert_trees_all_equal(found[0][1:], found[1][1:])
        sums = [{n: f.sum() for n, f in one[0].items()} for one in found]
        chex.assert_trees_all_close(*sums, rtol=1e-3, atol=1e-4)

    def test_a_round_counts_positions(self):
        target, x = padded.network(), padded.batch()

        def sample(key, count):
            return jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape[1:]), leaf.dtype), x)

        cases = (False, 16, 4096), (False, 3, 256 * 3), (True, 16, 1024), (True, 2000, 2000)
        for per_position, block, expected in cases:
            objective = Objective(per_position=per_position)
            found = rounds.num_examples(objective, Rules(), target, sample, block)
            self.assertEqual(found, expected)

    @pytest.mark.slow
    def test_memory_of_scales_and_rounds_follows_the_block(self):
        """Of 64 blocks, less than a quarter of what all logits do, and at most three steps'."""
        vocabulary, length, size = 3000, 8, 4
        params = {"E": networks.normal(0, vocabulary, 8), "U": networks.normal(1, 8, vocabulary)}
        target = apd_jax.Target(
            lambda p, ids: p["E"][ids] @ p["U"], params, inputs=jnp.zeros((2, length), jnp.int32)
        )
        own = apd_jax.init_components(jax.random.key(3), target, num_components=6, rank=1)
        objective = Objective(
            Coefficients(minimality=1, simplicity=0.1), topk=2.0, per_position=True,
            minimality_loss="kl", routes=Routes("sketch"),
        )  # fmt: skip
        key = jax.random.key(0)

        def used(function, count):
            ids = jax.ShapeDtypeStruct((count, length), jnp.int32)
            return jax.jit(function).lower(ids).compile().memory_analysis().temp_size_in_bytes

        def measure(ids):
            return scales(objective, target, ids, key, size)

        def move(ids):
            return rounds.move(objective, Rules(), target, own, ids, key, CONSTANT, False, size)

        def step(ids):
            optimizer = decomposition_optimizer(lambda step: 1e-2)
            return train_step(objective, optimizer, target, init_state(own, optimizer), ids, key)

        most = 3 * used(step, size)
        everything = 64 * size * length * vocabulary * 4  # bytes of all logits
        for function in (measure, move):
            found = used(function, 64 * size)
            self.assertLess(found, everything / 4)
            self.assertLess(found, most)
        at_once = used(lambda ids: scales(objective, target, ids, key), 64 * size)
        self.assertGreater(at_once, everything)


if __name__ == "__main__":
    absltest.main()
