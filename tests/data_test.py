"""Batches from functions, arrays and iterables: what is given, in what order, what is refused."""

import itertools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.data import as_source

KEY = jax.random.key(0)


def batches_of(source, steps, batch_size, chunks=(2, 3)):
    """The batches of the first steps, fed in chunks of these lengths in turn."""
    found, step = [], 0
    for length in itertools.cycle(chunks):
        length = min(length, steps - step)
        fed = source.feed(step, length)
        found += [source.batch(fed, jnp.int32(step + i), KEY, batch_size) for i in range(length)]
        step += length
        if step == steps:
            return found


def pairs(count):
    """A pytree with floats and integers in which rows can be told apart."""
    rows = np.arange(count)
    return {"x": np.stack([rows, -rows], 1).astype(np.float64), "token": rows}


class ArraysTest(parameterized.TestCase):
    def test_every_epoch_has_every_row_once_in_an_order_of_its_own(self):
        source = as_source(pairs(12), seed=3)
        source.check(4)
        tokens = [np.asarray(b["token"]) for b in batches_of(source, 9, 4)]
        epochs = np.stack(tokens).reshape(3, 12)
        for epoch in epochs:
            self.assertEqual(sorted(epoch), list(range(12)))
        self.assertLen({tuple(epoch) for epoch in epochs}, 3)

    def test_rows_of_all_leaves_stay_together_and_batches_cross_epochs(self):
        source = as_source(pairs(5))
        source.check(3)
        found = batches_of(source, 5, 3)
        for batch in found:
            np.testing.assert_array_equal(batch["x"][:, 0], batch["token"])
            self.assertEqual((batch["x"].dtype, batch["token"].dtype), (jnp.float32, jnp.int32))
        everything = np.concatenate([b["token"] for b in found])
        self.assertEqual(sorted(everything), sorted([*range(5)] * 3))

    def test_order_depends_on_the_seed_and_not_on_chunks(self):
        def order(seed, chunks):
            source = as_source(np.arange(10.0), seed)
            source.check(5)
            return np.concatenate(batches_of(source, 6, 5, chunks)).tolist()

        self.assertEqual(order(1, (6,)), order(1, (1, 2)))
        self.assertNotEqual(order(1, (6,)), order(2, (6,)))

    def test_batches_larger_than_the_data(self):
        source = as_source(np.arange(3.0))
        source.check(8)
        (batch,) = batches_of(source, 1, 8)
        self.assertEqual(sorted(np.asarray(batch)[:6]), [0, 0, 1, 1, 2, 2])

    @parameterized.parameters(
        ((np.zeros((3, 1)), np.zeros((4, 1))), "same N"),
        (np.zeros((0, 3)), "same N"),
        (np.array(1.0), "same N"),
        (np.array([1.0, np.nan]), "NaN or infinity"),
        (np.array(["a", "b"]), "must be numbers"),
        ("text", "got str"),
        (3, "got int"),
        ({"x": "text"}, "got dict"),
    )
    def test_refused(self, data, message):
        with self.assertRaisesRegex(apd_jax.UserError, message):
            as_source(data)


class BatchesTest(parameterized.TestCase):
    def batches(self, count, size=2):
        return [np.arange(i * size, (i + 1) * size) for i in range(count)]

    def test_a_list_starts_over(self):
        source = as_source(self.batches(3))
        self.assertEqual(source.sizes(), {"batch_size": 2})
        found = np.concatenate(batches_of(source, 7, 2)).tolist()
        self.assertEqual(found, [0, 1, 2, 3, 4, 5] * 2 + [0, 1])

    def test_going_on_passes_over_what_was_seen(self):
        source = as_source(b for b in self.batches(9))
        fed = source.feed(5, 2)
        np.testing.assert_array_equal(source.batch(fed, jnp.int32(6), KEY, 2), [12, 13])

    def test_a_generator_gives_each_batch_once_even_if_looked_at_first(self):
        source = as_source(b for b in self.batches(6))
        np.testing.assert_array_equal(source.examples(0, 3), [0, 1, 2])
        found = np.concatenate(batches_of(source, 6, 2)).tolist()
        self.assertEqual(found, list(range(12)))
        with self.assertRaisesRegex(apd_jax.UserError, "ended after 6 batches"):
            source.feed(6, 1)
        self.assertLen(source.examples(0, 100), 2)  # what the last step saw

    @parameterized.parameters(
        ([], "ended after 0 batches"),
        ([np.zeros(3), np.zeros(2)], "all batches must be alike"),
        ([(np.zeros(3), np.zeros(2))], "same number of rows"),
        ([np.zeros((0, 3))], "same number of rows, at least one"),
        ([np.array([np.inf])], "NaN or infinity"),
    )
    def test_refused(self, data, message):
        with self.assertRaisesRegex(apd_jax.UserError, message):
            as_source(data).feed(0, 2)

    def test_another_batch_size_is_refused(self):
        with self.assertRaisesRegex(apd_jax.UserError, "have 2 examples, batch_size is 4"):
            as_source(self.batches(2)).check(4)


class SamplerTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("frozen", lambda k, n: jnp.ones((n, 3)), "the same batch for every key"),
        ("size", lambda k, n: jax.random.normal(k, (8, 3)), r"asked for 4 .*\(8, 3\)"),
        ("no_batch", lambda k, n: jax.random.normal(k), "asked for 4"),
        ("one_leaf", lambda k, n: (jax.random.normal(k, (n, 3)), jnp.ones(3)), r"\(3,\)"),
        ("numpy", lambda k, n: np.asarray(jax.random.normal(k, (n, 3))), "traced by JAX"),
    )
    def test_refused(self, function, message):
        with self.assertRaisesRegex(apd_jax.UserError, message):
            as_source(function).check(4)

    @parameterized.named_parameters(
        ("key", lambda key: key, r"data must be a function of \(key, batch_size\): too many"),
        ("generator", lambda key, n: (key for _ in range(n)), "it gave generator"),
        ("nothing", lambda key, n: None, "it gave NoneType"),
        ("empty", lambda key, n: jnp.zeros((0, 3)), r"asked for 3 .*\(0, 3\)"),
    )
    def test_refused_at_the_first_look(self, function, message):
        with self.assertRaisesRegex(apd_jax.UserError, message):
            as_source(function).examples(0, 3)

    def test_a_generator_function_is_refused(self):
        def batches():
            yield np.zeros((4, 3))

        with self.assertRaisesRegex(apd_jax.UserError, r"call it, data=f\(\)"):
            as_source(batches)

    def test_an_iterator_in_a_function_is_refused(self):
        generator = (np.full((4, 3), i) for i in range(100))
        with self.assertRaisesRegex(apd_jax.UserError, "give the arrays or the iterator itself"):
            as_source(lambda key, n: next(generator)).check(4)

    def test_rare_events_are_no_constant(self):
        source = as_source(lambda k, n: jax.random.bernoulli(k, 0.2, (n, 2)).astype(jnp.float32))
        source.check(8)


class DrawTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("arrays", lambda: np.arange(10.0)),
        ("batches", lambda: [np.arange(5.0), np.arange(5.0, 10.0)]),
        ("function", lambda: lambda key, n: jax.random.randint(key, (n,), 0, 10).astype(float)),
    )
    def test_examples_for_other_uses(self, make):
        source = as_source(make())
        source.check(5)
        found = jax.jit(source.draw(3), static_argnums=1)(KEY, 200)
        self.assertEqual(set(np.asarray(found)), set(range(10)))


class TrainingTest(parameterized.TestCase):
    """The same batches give the same decomposition, whichever way they come."""

    @pytest.mark.slow
    def test_arrays_and_their_batches(self):
        rows = np.asarray(networks.normal(7, 16, 3))
        source = as_source(rows, 5)
        source.check(4)
        in_order = [np.asarray(b) for b in batches_of(source, 6, 4)]
        options = dict(num_components=3, topk=1.0, steps=6, chunk_steps=4, rank=1, seed=5)
        options["relative_losses"] = False  # they are relative to examples that differ
        one = apd_jax.decompose(networks.mlp(), rows, batch_size=4, **options)
        two = apd_jax.decompose(networks.mlp(), iter(in_order), **options)
        self.assertEqual(two.settings.batch_size, 4)
        jax.tree.map(np.testing.assert_array_equal, one.components, two.components)

    @pytest.mark.slow
    def test_tokens(self):
        def network(params, x):
            return params["embed"][x["token"]].sum(axis=1) @ params["out"] + x["shift"]

        params = {"embed": networks.normal(0, 6, 3), "out": networks.normal(1, 3, 2)}
        data = {
            "token": np.random.default_rng(0).integers(0, 6, (40, 4)),
            "shift": np.zeros((40, 2)),
        }
        found = apd_jax.decompose(
            apd_jax.Target(network, params), data, num_components=4, topk=2, steps=4, batch_size=8
        )
        self.assertEqual(found(jax.tree.map(lambda a: a[:5], data)).shape, (5, 2))


if __name__ == "__main__":
    absltest.main()
