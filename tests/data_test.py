"""Batches from functions, arrays and iterables: what is given, in what order, what is refused."""

import collections
import functools
import itertools
import json
import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import scipy.sparse
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.data import arrays, as_source, numbers, tables
from apd_jax.data import batches as batches_module
from apd_jax.data import source as source_module
from apd_jax.data.source import POOL
from apd_jax.decomposition import job
from apd_jax.runtime import checksum

KEY = jax.random.key(0)


def batches_of(source, steps, batch_size, chunks=(2, 3)):
    """The batches of the first steps, fed in chunks of these lengths in turn."""
    source = source.with_batch_size(batch_size)
    found, step = [], 0
    for length in itertools.cycle(chunks):
        for count, fed in source.pieces(step, min(length, steps - step)):
            found += [source.batch(fed, jnp.int32(step + i), KEY, batch_size) for i in range(count)]
            step += count
        if step == steps:
            return found


def pairs(count):
    """A pytree with floats and integers in which rows can be told apart."""
    rows = np.arange(count)
    return {"x": np.stack([rows, -rows], 1).astype(np.float64), "token": rows}


class ArraysTest(parameterized.TestCase):
    def test_every_epoch_has_every_row_once_in_an_order_of_its_own(self):
        source = as_source(pairs(12), seed=3)
        tokens = [np.asarray(b["token"]) for b in batches_of(source, 9, 4)]
        epochs = np.stack(tokens).reshape(3, 12)
        for epoch in epochs:
            self.assertEqual(sorted(epoch), list(range(12)))
        self.assertLen({tuple(epoch) for epoch in epochs}, 3)

    def test_rows_of_all_leaves_stay_together_and_batches_cross_epochs(self):
        source = as_source(pairs(5))
        found = batches_of(source, 5, 3)
        for batch in found:
            np.testing.assert_array_equal(batch["x"][:, 0], batch["token"])
            self.assertEqual((batch["x"].dtype, batch["token"].dtype), (jnp.float32, jnp.int32))
        everything = np.concatenate([b["token"] for b in found])
        self.assertEqual(sorted(everything), sorted([*range(5)] * 3))

    def test_order_depends_on_the_seed_and_not_on_chunks(self):
        def order(seed, chunks):
            source = as_source(np.arange(10.0), seed)
            return np.concatenate(batches_of(source, 6, 5, chunks)).tolist()

        self.assertEqual(order(1, (6,)), order(1, (1, 2)))
        self.assertNotEqual(order(1, (6,)), order(2, (6,)))

    def test_batches_larger_than_the_data(self):
        source = as_source(np.arange(3.0))
        (batch,) = batches_of(source, 1, 8)
        self.assertEqual(sorted(np.asarray(batch)[:6]), [0, 0, 1, 1, 2, 2])

    @parameterized.parameters(
        ((np.zeros((3, 1)), np.zeros((4, 1))), "same N"),
        (np.zeros((0, 3)), "same N"),
        (np.array(1.0), "same N"),
        ({"x": np.zeros((3, 1)), "y": np.zeros(())}, "a single number"),
        (np.array([1.0, np.nan]), "NaN or infinity"),
        ((np.ones(2), jnp.array([1.0, -jnp.inf])), "NaN or infinity"),
        (np.array([1e300, 1.0]), "NaN or infinity"),  # of float32
        (np.array([2**40, 1]), r"integers from 1 to 1099511627776, but JAX computes with int32"),
        (np.array([2**32 - 1], np.int64), "integers from 4294967295"),
        (np.array(["a", "b"]), "expected numbers, got an array of <U1: leave text out"),
        (np.array([b"a"]), "leave text out"),
        (np.array([np.zeros(2), np.zeros(3)], object), r"of object: .* np.stack\(rows\)"),
        (np.array([[1, "a"]], object), "columns that hold numbers"),
        (np.zeros(3, [("a", "f4"), ("b", "i4")]), r"a dict of its fields \['a', 'b'\]"),
        (np.array(["2026-01-01"], "M8[D]"), "convert it to numbers"),
        (jax.random.split(KEY, 3), "convert it to numbers"),
        (np.ma.masked_array([1.0, 2.0], [0, 1]), "masked array"),
        (scipy.sparse.eye(3).tocsr(), "toarray"),
        ("text", "got str"),
        (b"text", "got bytes"),
        (3, "got int"),
        (None, "got NoneType"),
        ({"x": "text"}, "got dict of str: every leaf must be an array"),
        ((np.zeros(3), [1, 2]), r"the same N, at least one, got N = \[3, 2\]"),
        ({"ids": [[1, 2], [3]], "n": [1, 2]}, r"^data\['ids'\]: .*padded or cut to the same"),
        ((np.zeros(2), [(1, 2), (3,)]), r"^data\[1\]: .*padded or cut to the same length"),
        ({"words": ["a", "b"]}, r"^data\['words'\]: .*the ids of its tokens"),
        ({"x": [[1.0], [np.nan]]}, "NaN or infinity"),
        ({"x": np.zeros(2), "name": np.array(["a", "b"])}, r"^data\['name'\]: .*array of <U1"),
        ({"x": np.zeros(2), "y": np.array([1.0, np.nan])}, r"^data\['y'\]: .*NaN or infinity"),
        ((np.zeros(2), np.array([2**40, 1])), r"^data\[1\]: .*integers from 1"),
        ({}, "got dict of nothing"),
        ({"x": np.zeros(3), 1: np.zeros(3)}, "keys can't be sorted, .*: use text for all"),
        (collections.UserDict({"x": np.zeros(3), 1: np.zeros(3)}), "keys can't be sorted"),
        (np.ones((2, 3), object), r"give .astype\('float32'\) where all are numbers"),
    )
    def test_refused(self, data, message):
        with self.assertRaisesRegex(apd_jax.UserError, message):
            as_source(data)

    @parameterized.parameters((lambda x, y: (x, y),), (lambda x, y: (x.tolist(), y.tolist()),))
    def test_labels_beside_the_inputs(self, given):
        data = given(np.ones((8, 3)), np.arange(8))
        with self.assertRaisesRegex(apd_jax.UserError, r"tuple of 2 arrays.*labels, give data\[0"):
            apd_jax.decompose(networks.mlp(), data, num_components=3, topk=1.0, steps=2)

    @parameterized.parameters("u1", "i2", "i8", "?", "f2", "f8", "bfloat16")
    def test_numbers_of_every_kind(self, kind):
        rows = np.arange(6).reshape(3, 2).astype(kind)
        found = as_source(rows).examples(0, 3)
        np.testing.assert_array_equal(found, rows)
        self.assertEqual(found.dtype, jax.dtypes.canonicalize_dtype(rows.dtype))

    def test_mappings_that_are_no_dicts(self):
        data = collections.UserDict(x=np.zeros((3, 2)), y=collections.UserDict(z=np.ones(3)))
        found = as_source(data).examples(0, 2)
        self.assertEqual(jax.tree.map(jnp.shape, found), {"x": (2, 2), "y": {"z": (2,)}})

    @parameterized.parameters(dict, collections.UserDict, lambda x: (x["ids"], x["n"]))
    def test_lists_of_numbers_in_a_dict_or_tuple(self, kind):
        lists = {"ids": [[1, 2], [3, 4], [5, 6]], "n": [(0.5,), (1.5,), (2.5,)]}
        found = jax.tree.leaves(as_source(kind(lists)).examples(0, 3))
        for leaf, expected in zip(found, map(np.asarray, lists.values()), strict=True):
            np.testing.assert_array_equal(leaf, expected)

    def test_check_changes_nothing(self):
        source = as_source(np.arange(10.0)).with_batch_size(2)
        source.check(5)
        self.assertEqual(source.feed(0, 1)["rows"].shape, (1, 2))


class RowsTest(parameterized.TestCase):
    """Data that are not put on the device as a whole."""

    def setUp(self):
        super().setUp()
        self.enter_context(mock.patch.object(arrays, "_ON_DEVICE", 100))

    def test_the_same_batches_as_of_small_arrays(self):
        data = pairs(30)
        read = batches_of(as_source(data, 3), 7, 4)
        with mock.patch.object(arrays, "_ON_DEVICE", 10**6):
            resident = batches_of(as_source(data, 3), 7, 4)
        jax.tree.map(np.testing.assert_array_equal, read, resident)
        source = as_source(data)
        self.assertNotIn("arrays", source.with_batch_size(4).feed(0, 1))

    @parameterized.parameters(np.asarray, jnp.asarray)
    def test_the_description_does_not_depend_on_the_size(self, kind):
        data = {"x": kind(np.random.default_rng(0).normal(size=(50, 3)))}
        read = as_source(data).describe()
        with (
            mock.patch.object(arrays, "_ON_DEVICE", 10**6),
            mock.patch.object(numbers, "_BLOCK_BYTES", 100),
        ):
            self.assertEqual(as_source(data).describe(), read)
        values = np.asarray(data["x"], np.float32)
        self.assertEqual(read, f"arrays [[50, 3]], sha256 {checksum.fingerprint([values])}")

    @parameterized.parameters("r", "r+", "c")
    def test_a_mapped_file(self, mode):
        path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / "rows"
        rows = np.random.default_rng(0).integers(0, 100, (40, 3)).astype(np.float64)
        rows.tofile(path)
        mapped = np.memmap(path, np.float64, mode, shape=(40, 3))
        if mode == "c":
            mapped[5] = rows[5] = -1  # nowhere but in memory
        for view in (mapped, mapped[:], np.asarray(mapped)):
            found = batches_of(as_source(view, 1), 5, 8)
            jax.tree.map(np.testing.assert_array_equal, found, batches_of(as_source(rows, 1), 5, 8))
        self.assertEqual(as_source(mapped).describe(), as_source(rows).describe())
        np.testing.assert_array_equal(mapped, rows)

    def mapped(self, rows):
        """The rows in a memory-mapped file."""
        path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / "rows"
        rows.tofile(path)
        return np.memmap(path, rows.dtype, "r", shape=rows.shape)

    @parameterized.parameters(0, 21, 39)
    def test_nan_in_an_array_or_a_small_file_is_refused_at_once(self, row):
        rows = np.ones((40, 3))
        rows[row, 1] = np.nan
        for data in (rows, self.mapped(rows)):
            with self.assertRaisesRegex(apd_jax.UserError, "NaN or infinity"):
                as_source(data)

    def test_of_a_large_file_some_rows_are_checked_at_once(self):
        bounds = {"_LARGE": 100, "_SAMPLE": 4}
        for row, seen in ((0, True), (26, True), (39, True), (20, False)):
            rows = np.ones((40, 3))
            rows[row] = np.nan
            mapped = self.mapped(rows)
            with mock.patch.multiple(tables, **bounds), self.subTest(row=row):
                if seen:
                    with self.assertRaisesRegex(apd_jax.UserError, "NaN or infinity"):
                        as_source(mapped)
                    continue
                source = as_source(mapped)
                with self.assertRaisesRegex(apd_jax.UserError, "NaN or infinity"):
                    source.examples(0, 40)

    def test_a_large_file_is_read_whole_only_to_recognise_it_in_a_workdir(self):
        """Without one a call reads few rows before its training."""
        rows = np.random.default_rng(0).normal(size=(20_000, 3)).astype(np.float32)
        data, read = self.mapped(rows), []
        options = {"num_components": 3, "topk": 1.0, "rank": 1, "batch_size": 8}

        def to_numpy(array, convert=numbers.to_numpy):
            read.append(len(array))
            return convert(array)

        with (
            mock.patch.object(tables, "_LARGE", 100),
            mock.patch.object(tables, "to_numpy", to_numpy),
            mock.patch.object(numbers, "to_numpy", to_numpy),
            mock.patch.object(job.Job, "decompose") as trained,
        ):
            apd_jax.decompose(networks.mlp(), data, **options)
            self.assertBetween(sum(read), tables._SAMPLE, 2 * tables._SAMPLE)
            with tempfile.TemporaryDirectory() as place:
                apd_jax.decompose(networks.mlp(), data, workdir=f"{place}/run", **options)
                config = json.loads(pathlib.Path(f"{place}/run/config.json").read_text())
        self.assertEqual(trained.call_count, 2)
        self.assertEqual(
            config["data"], f"arrays [[20000, 3]], sha256 {checksum.fingerprint([rows])}"
        )

    @parameterized.parameters((100, 10), (7, 7), (13, 1))
    def test_chunks_are_divided_into_equal_pieces(self, length, count):
        with mock.patch.object(arrays, "MOST_BYTES", 4 * 11 * 10):  # 11 batches
            source = as_source(np.arange(100.0, dtype=np.float32)).with_batch_size(10)
            counts = [count for count, _ in source.pieces(3, length)]
        self.assertEqual(counts, [count] * (length // count))

    def test_large_examples_are_looked_at_in_smaller_numbers(self):
        with mock.patch.object(source_module, "MOST_BYTES", 4 * 70):
            self.assertLen(as_source(np.arange(200, dtype=np.int32)).examples(0, 500), 70)
            self.assertLen(as_source(np.ones((200, 4), np.float32)).examples(0, 500), 64)


class BatchesTest(parameterized.TestCase):
    def batches(self, count, size=2):
        return [np.arange(i * size, (i + 1) * size) for i in range(count)]

    def test_a_list_starts_over(self):
        source = as_source(self.batches(3))
        self.assertEqual(source.sizes(), {"batch_size": 2})
        found = np.concatenate(batches_of(source, 7, 2)).tolist()
        self.assertEqual(found, [0, 1, 2, 3, 4, 5] * 2 + [0, 1])

    def test_a_loader_with_one_iterator_starts_over(self):
        source = as_source(Restarting(self.batches(3)))
        for _ in range(2):
            found = np.concatenate(batches_of(source, 7, 2)).tolist()
            self.assertEqual(found, [0, 1, 2, 3, 4, 5] * 2 + [0, 1])
            source = source.again()

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
        ([], "the data gave no batch: .*drop_last=True"),
        ([np.zeros(2), np.zeros(3)], "all batches must be alike"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], "pad or cut examples to one length"),
        ([np.zeros(2, int), np.zeros(2)], "all batches must be alike"),
        ([{"x": np.zeros(2)}, {"y": np.zeros(2)}], "all batches must be alike"),
        ([{"x": 1.0, "y": np.zeros(3)}], r"'x': float32\[\].*np.stack\(list\(data\)\)"),
        ([1.0, 2.0], "give batches of them"),
        ([{"x": np.zeros(1), "y": ["text"]}], r"^an item of the data\['y'\]: .*leave text out"),
        ([[[1, 2], [3]]], "padded or cut to the same length"),
        ([None], "data is NoneType, and must be a batch"),
        ([(np.zeros(3), np.zeros(2))], "same number of rows"),
        ([np.zeros((0, 3))], "same number of rows, at least one"),
        ([np.array([np.inf])], "NaN or infinity"),
    )
    def test_refused(self, data, message):
        with self.assertRaisesRegex(apd_jax.UserError, message):
            as_source(data).feed(0, 2)

    @parameterized.parameters(list, lambda batches: Loader(batches))
    def test_a_smaller_last_batch_is_left_out_with_one_warning(self, kind):
        source = as_source(kind([*self.batches(3), np.arange(1)]))
        with self.assertLogs(level="WARNING") as logs:
            found = np.concatenate(batches_of(source, 7, 2)).tolist()
        self.assertEqual(found, [0, 1, 2, 3, 4, 5] * 2 + [0, 1])
        self.assertLen(logs.records, 1)

    def test_epochs_without_a_whole_batch_end_the_data(self):
        class Shrinking:
            sizes = itertools.chain([4], itertools.repeat(3))

            def __iter__(self):
                return iter([np.zeros(next(self.sizes))])

        with self.assertRaisesRegex(apd_jax.UserError, "ended after 1 batches"):
            batches_of(as_source(Shrinking()), 2, 4)

    def test_an_array_that_is_filled_again_is_copied(self):
        def loader():
            buffer = np.zeros(2, np.float32)
            for i in range(6):
                buffer[:] = i
                yield buffer

        source = as_source(loader())
        np.testing.assert_array_equal(source.examples(0, 4), [0, 0, 1, 1])
        found = np.stack(batches_of(source, 6, 2))[:, 0].tolist()
        self.assertEqual(found, [*range(6)])

    def test_lists_of_numbers_are_arrays(self):
        batch = {"x": [[1, 2], [3, 4]], "y": [0.5, 1.5]}
        found = as_source([batch]).examples(0, 2)
        np.testing.assert_array_equal(found["x"], batch["x"])
        np.testing.assert_array_equal(found["y"], batch["y"])

    def test_few_batches_are_read_at_a_time(self):
        read = itertools.count()
        source = as_source(np.full(5, next(read), np.float32) for _ in range(1000))
        with mock.patch.object(batches_module, "MOST_BYTES", 3 * 20):  # 3 batches
            source.examples(0, 4096)
            self.assertEqual(next(read), 3)
            for count, _ in source.pieces(0, 100):
                self.assertLessEqual(count, 3)
        self.assertEqual(next(read), 101)  # none too many

    @parameterized.named_parameters(
        ("rows", lambda x: [*x], r"item of the data is float32\[3\]; .* np.stack\(list\(data\)\)"),
        ("iterator", iter, "item of the data is float32"),
        ("lists", lambda x: x.tolist(), "item of the data is float32"),
        ("dicts", lambda x: [{"x": row} for row in x], "item of the data is {'x': float32"),
        (
            "wrapped",
            lambda x: [[x], [x]],
            r"a list of one array.*\(batch\[0\] for batch in loader\)",
        ),
    )
    def test_single_examples(self, data, message):
        rows = np.asarray(networks.normal(7, 16, 3))
        with self.assertRaisesRegex(apd_jax.UserError, message):
            apd_jax.decompose(networks.mlp(), data(rows), num_components=3, topk=1.0, steps=2)

    def test_another_batch_size_is_refused(self):
        with self.assertRaisesRegex(apd_jax.UserError, "have 2 examples, batch_size is 4"):
            as_source(self.batches(2)).check(4)


class Loader:
    """Batches that can be iterated again."""

    def __init__(self, batches):
        self._batches = batches

    def __iter__(self):
        return iter(self._batches)


class Restarting(Loader):
    """Batches of one iterator that is set back, as that of a loader whose workers persist."""

    def __iter__(self):
        self._waiting = list(self._batches)
        return self._own

    @functools.cached_property
    def _own(self):
        take = self._take

        class Iterator:
            __iter__ = lambda own: own  # noqa: E731
            __next__ = lambda own: take()  # noqa: E731

        return Iterator()

    def _take(self):
        if not self._waiting:
            raise StopIteration
        return self._waiting.pop(0)


class Examples:
    """A data set by number, as torch has it."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return np.zeros(3)


class KindsTest(absltest.TestCase):
    def test_a_data_set_by_number_needs_a_loader(self):
        with self.assertRaisesRegex(apd_jax.UserError, "DataLoader"):
            as_source(Examples())


class SamplerTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("frozen", lambda k, n: jnp.ones((n, 3)), "the same batch for every key"),
        ("size", lambda k, n: jax.random.normal(k, (8, 3)), r"asked for 4 .*\(8, 3\)"),
        ("no_batch", lambda k, n: jax.random.normal(k), "asked for 4"),
        ("one_leaf", lambda k, n: (jax.random.normal(k, (n, 3)), jnp.ones(3)), r"\(3,\)"),
        ("numpy", lambda k, n: np.asarray(jax.random.normal(k, (n, 3))), "traceable by JAX"),
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

    def test_what_can_not_be_vectorised_is_refused(self):
        def sample(key, n):
            shape = jax.ShapeDtypeStruct((n, 3), jnp.float32)
            return jax.pure_callback(lambda k: np.zeros((n, 3), "f4"), shape, key)

        with self.assertRaisesRegex(
            apd_jax.UserError, "traceable by JAX, .*vmap_method.*draw with"
        ):
            as_source(sample).check(4)

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
        sample = jax.jit(source.sample, static_argnums=2)
        found = sample(source.pool(3, 0), KEY, 200)
        self.assertEqual(set(np.asarray(found)), set(range(10)))


class PoolTest(parameterized.TestCase):
    """Rounds of refinement see other examples each time, and after a resume the same ones."""

    def memmap(self):
        path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "rows"
        rows = np.memmap(path, np.float32, "w+", shape=(20_000, 1))
        rows[:, 0] = np.arange(20_000)
        return rows

    def batches(self):
        return [np.full((64, 1), i, np.float32) for i in range(300)]

    @parameterized.named_parameters(("memmap", memmap), ("batches", batches))
    def test_other_examples_at_other_steps(self, make):
        data, size = make(self), 64
        source = as_source(data).with_batch_size(size)
        pools = {}
        for step in (0, 100, 200):
            pools[step] = np.asarray(source.pool(3, step))
            source.feed(step, 100)
        resumed = as_source(data).with_batch_size(size)
        np.testing.assert_array_equal(resumed.pool(3, 200), pools[200])
        np.testing.assert_array_equal(
            jax.tree.leaves(resumed.feed(200, 1)["batches"])[0],
            jax.tree.leaves(as_source(data).with_batch_size(size).feed(200, 1)["batches"])[0],
        )
        self.assertEqual({pool.shape for pool in pools.values()}, {(POOL, 1)})
        self.assertLess(len(np.intersect1d(pools[100], pools[200])), POOL / 2)

    @parameterized.named_parameters(("memmap", memmap), ("batches", batches))
    def test_a_program_may_hold_it(self, make):
        """As the choice among restarts does, and that of the limits of gates."""
        source = as_source(make(self)).with_batch_size(64)
        pool = source.pool(3, 0)
        found = jax.jit(lambda key: source.sample(pool, key, 50))(KEY)
        self.assertContainsSubset(np.asarray(found)[:, 0], np.asarray(pool)[:, 0])

    def test_of_what_is_in_memory_every_example_is_drawn(self):
        source = as_source(np.arange(10_000))
        found = source.sample(source.pool(3, 0), KEY, 100_000)
        self.assertLen(np.unique(found), 10_000)


class TrainingTest(parameterized.TestCase):
    """The same batches give the same decomposition, whichever way they come."""

    @pytest.mark.slow
    def test_arrays_and_their_batches(self):
        rows = np.asarray(networks.normal(7, 16, 3))
        source = as_source(rows, 5)
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
