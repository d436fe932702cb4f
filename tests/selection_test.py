"""Top-k masks against a plain sort, on scores with many ties."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from apd_jax.errors import UserError
from apd_jax.objective import selected, selection

# Few shapes and few values: quick to compile, and full of ties and zeros of both signs.
SHAPES = ((1, 1), (4, 1), (1, 4), (2, 3))
VALUES = np.array([-0.0, 0.0, 0.5, 0.5, 1.0, 2.0, 1e-30, 3e38], np.float32)


@st.composite
def tables(draw):
    """Scores [B, C] and a number of active pairs in [1, B·C]."""
    shape = draw(st.sampled_from(SHAPES))
    picks = draw(st.lists(st.integers(0, 7), min_size=math.prod(shape), max_size=math.prod(shape)))
    count = draw(st.integers(1, math.prod(shape)))
    return VALUES[picks].reshape(shape), count


def largest(scores, count):
    """Mask of the `count` largest of a flat list; of equal values the earlier one."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    mask = np.zeros(len(scores), bool)
    mask[order[:count]] = True
    return mask


def mask_of(pairs, shape):
    """Mask that is true at the given pairs, each of them given once."""
    mask = np.zeros(shape, int)
    np.add.at(mask, tuple(map(np.asarray, pairs)), 1)
    assert mask.max() <= 1
    return mask.astype(bool)


@functools.cache
def compiled(k, *functions):
    """The values of functions of scores and k, by one program for every shape of the scores."""
    return jax.jit(lambda scores: [function(scores, k) for function in functions])


class BatchTest(parameterized.TestCase):
    @settings(deadline=None, max_examples=60)
    @given(tables())
    def test_equals_a_sort(self, table):
        scores, count = table
        k = (count + 0.25) / len(scores)  # k·B is not whole
        expected = largest(scores.reshape(-1), count).reshape(scores.shape)
        mask, chosen = compiled(k, selection.batch_topk_mask, selection.batch_topk)(scores)
        np.testing.assert_array_equal(mask, expected)
        np.testing.assert_array_equal(mask_of(chosen.pairs, scores.shape), expected)

    @parameterized.parameters(
        (1.28, 256, 327), (0.211, 2048, 432), (1, 7, 7), (0.5, 3, 1), (2 / 3, 3, 2), (0.999, 2, 1)
    )
    def test_floor_of_k_times_batch(self, k, batch_size, expected):
        self.assertEqual(selection.num_active(k, batch_size, 3), expected)
        chosen = jax.eval_shape(lambda s: selection.batch_topk(s, k), jnp.ones((batch_size, 3)))
        self.assertEqual(chosen.pairs[0].shape, (expected,))

    def test_zeros_go_to_the_lower_flat_index(self):
        mask = selection.batch_topk_mask(jnp.zeros((3, 2)), 1.0)
        np.testing.assert_array_equal(mask, [[1, 1], [1, 0], [0, 0]])

    def test_everything(self):
        self.assertTrue(selection.batch_topk_mask(jnp.zeros((3, 2)), 2.0).all())

    @parameterized.parameters(
        (1.0, 0, 2, "the batch is empty"),
        (0.3, 3, 2, "k=0.3 selects nothing: .+ 0 at batch size 3; k must be at least 0.333333"),
        (0, 3, 2, "selects nothing"),
        (-1, 3, 2, "selects nothing"),
        (2.4, 3, 2, r"k must be at most the number of components \(2\), got 2.4"),
        (1, 3, 0, r"number of components \(0\), got 1"),
        (math.inf, 3, 2, "finite"),
        (math.nan, 3, 2, "finite"),
    )
    def test_bad_k(self, k, batch_size, components, message):
        with self.assertRaisesRegex(ValueError, message):
            selection.batch_topk_mask(jnp.zeros((batch_size, components)), k)


class SampleTest(parameterized.TestCase):
    @settings(deadline=None, max_examples=60)
    @given(tables())
    def test_equals_a_sort_of_each_row(self, table):
        scores, count = table
        k = min(count, scores.shape[1])
        expected = np.stack([largest(row, k) for row in scores])
        mask, chosen = compiled(k, selection.topk_mask, selection.sample_topk)(scores)
        np.testing.assert_array_equal(mask, expected)
        np.testing.assert_array_equal(mask_of(chosen.pairs, scores.shape), expected)

    @parameterized.parameters(0, -1, 1.5, 4, math.inf, math.nan)
    def test_bad_k(self, k):
        with self.assertRaisesRegex(ValueError, r"whole k in \[1, 3\], got"):
            selection.topk_mask(jnp.zeros((2, 3)), k)


class ExactTest(parameterized.TestCase):
    @settings(deadline=None, max_examples=40)
    @given(tables(), st.data())
    def test_as_many_as_active_inputs(self, table, data):
        scores, _ = table
        x = np.zeros((len(scores), 3), np.float32)
        active = data.draw(st.integers(0, x.size))
        x.reshape(-1)[:active] = -0.5
        expected = largest(scores.reshape(-1), active).reshape(scores.shape)
        np.testing.assert_array_equal(selection.exact_topk_mask(scores, x), expected)


# The NaN that x86 computes has its sign bit set; np.nan, as on GPUs, has not.
NEGATIVE_NAN = np.array(0xFFC00000, np.uint32).view(np.float32)


class ArgumentsTest(parameterized.TestCase):
    @parameterized.parameters((np.float32(1.5),), (jnp.array(1.5),), (np.array(1.5),))
    def test_numbers_of_any_library(self, k):
        self.assertEqual(selection.batch_topk_mask(np.ones((4, 3)), k).sum(), 6)

    @parameterized.parameters((True,), ("2",), (None,), (1j,), (np.array([1]),), (jnp.inf,))
    def test_k_that_is_no_number(self, k):
        for function, message in (
            (selection.batch_topk_mask, "k must be a finite number, and no traced one, got"),
            (selection.topk_mask, "needs a whole k in .* got"),
        ):
            with self.assertRaisesRegex(UserError, message):
                function(jnp.ones((4, 3)), k)
            with self.assertRaisesRegex(UserError, message):
                jax.jit(function)(jnp.ones((4, 3)), 1.0)

    @parameterized.parameters((np.ones(3),), (np.ones((2, 4, 3)),), (np.ones((4, 3), complex),))
    def test_scores_that_are_no_table(self, scores):
        for function in (selection.batch_topk_mask, selection.topk_mask):
            with self.assertRaisesRegex(UserError, r"scores must be real numbers \[B, C\]"):
                function(scores, 1)


class NonFiniteTest(parameterized.TestCase):
    """Scores that are NaN (of either sign) or infinite are never selected, and never in silence."""

    @parameterized.parameters((np.nan,), (NEGATIVE_NAN,), (np.inf,), (-np.inf,))
    def test_is_never_selected(self, bad):
        scores = jnp.array([[bad, 1.0], [0.0, bad], [bad, bad]], jnp.float32)
        finite = np.isfinite(scores)
        batch = (compiled(k, selection.batch_topk)(scores)[0] for k in (2 / 3, 1.0, 2.0))
        sample = (compiled(k, selection.sample_topk)(scores)[0] for k in (1, 2))
        for chosen in (*batch, *sample):
            np.testing.assert_array_equal(chosen.mask, finite)
            rows, components = map(np.asarray, chosen.pairs)
            there = components < 2
            np.testing.assert_array_equal(mask_of((rows[there], components[there]), (3, 2)), finite)
            np.testing.assert_array_equal(chosen.counts(), finite.sum(axis=0))
        part = selection.batch_topk(scores, 2.0, None, jnp.float32(0.9))
        np.testing.assert_array_equal(part.mask, finite)
        exact = selection.exact_topk_mask(scores, jnp.ones((3, 2)))
        np.testing.assert_array_equal(exact, finite)

    @parameterized.parameters((np.nan,), (NEGATIVE_NAN,), (np.inf,))
    def test_leaves_its_place_to_the_next(self, bad):
        scores = jnp.array([[bad, 1.0, 2.0], [0.5, 3.0, 0.0]], jnp.float32)
        mask = selection.batch_topk(scores, 1.5).mask
        np.testing.assert_array_equal(mask, [[0, 1, 1], [0, 1, 0]])

    def test_a_component_that_is_always_active_is_no_filling(self):
        scores = jnp.array([[jnp.nan, 1.0], [jnp.nan, jnp.nan]])
        chosen = selected.add_always_active(selection.batch_topk(scores, 1.0))
        np.testing.assert_array_equal(chosen.mask, [[0, 1, 1], [0, 0, 1]])
        np.testing.assert_array_equal(chosen.counts(), [0, 1, 2])

    @parameterized.parameters((selection.batch_topk_mask, 1.5), (selection.topk_mask, 1))
    def test_is_said(self, function, k):
        # `assertWarns` looks at every imported module, and so imports what is imported lazily.
        with pytest.warns(RuntimeWarning, match="2 of 4 scores are NaN or infinite"):
            function(jnp.array([[jnp.nan, 1.0], [jnp.inf, 0.0]]), k)


class MaskTest(absltest.TestCase):
    def test_always_active(self):
        chosen = selection.batch_topk(jnp.array([[1.0, 0.0], [0.0, 0.0]]), 0.5)
        chosen = selected.add_always_active(chosen)
        np.testing.assert_array_equal(chosen.mask, [[True, False, True], [False, False, True]])
        np.testing.assert_array_equal(mask_of(chosen.pairs, (2, 3)), chosen.mask)

    def test_no_gradient_passes(self):
        def total(scores):
            masks = (selection.batch_topk_mask(scores, 1.5), selection.topk_mask(scores, 1))
            return sum(jnp.sum(mask * 1.0) for mask in masks)

        gradient = jax.grad(total)(jnp.arange(6.0).reshape(2, 3))
        np.testing.assert_array_equal(gradient, np.zeros((2, 3)))

    def test_under_jit_and_vmap(self):
        scores = jnp.array(np.random.default_rng(0).normal(size=(3, 4, 5)))
        together = jax.jit(jax.vmap(lambda s: selection.batch_topk_mask(s, 1.3)))(scores)
        for one, expected in zip(scores, together, strict=True):
            np.testing.assert_array_equal(selection.batch_topk_mask(one, 1.3), expected)
            self.assertEqual(int(expected.sum()), 5)


if __name__ == "__main__":
    absltest.main()
