"""Data of torch, Hugging Face's datasets and grain, where these are installed."""

import collections
import datetime
import importlib.util
import warnings

import jax
import jax.numpy as jnp
import networks
import numpy as np
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.data import as_source

_HAS = {name: importlib.util.find_spec(name) is not None for name in ("torch", "datasets", "grain")}
if _HAS["torch"]:
    import torch
    import torch.utils.data
if _HAS["datasets"]:
    import datasets
if _HAS["grain"]:
    import grain

KEY = jax.random.key(0)
ROWS = np.arange(60, dtype=np.float32).reshape(20, 3)


def batches_of(source, steps, batch_size):
    """The batches of the first steps."""
    source = source.with_batch_size(batch_size)
    found = []
    for count, fed in source.pieces(0, steps):
        start = len(found)
        found += [source.batch(fed, jnp.int32(start + i), KEY, batch_size) for i in range(count)]
    return found


def nested(layout=None):
    """A tensor of torch whose rows have different lengths."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(3), torch.ones(2)], layout=layout)


@absltest.skipUnless(_HAS["torch"], "needs torch")
class TorchTest(parameterized.TestCase):
    @parameterized.parameters("float32", "float64", "int64", "uint8", "bool", "float16", "bfloat16")
    def test_tensors_are_arrays(self, kind):
        tensor = torch.arange(6).reshape(3, 2).to(getattr(torch, kind))
        found = as_source({"x": tensor}).examples(0, 3)["x"]
        np.testing.assert_array_equal(found, np.asarray(np.arange(6).reshape(3, 2).astype(kind)))
        self.assertEqual(found.dtype, jax.dtypes.canonicalize_dtype(kind))

    def test_tensors_with_gradients_and_views(self):
        rows = torch.tensor(ROWS, requires_grad=True)
        for tensor in (rows, rows.T.contiguous().T, rows[:, :2], (rows + 0j).conj().real):
            found = as_source(tensor).examples(0, 20)
            np.testing.assert_array_equal(found, tensor.detach().numpy())

    def test_later_changes_of_a_tensor_are_not_seen(self):
        tensor = torch.tensor(ROWS)
        source = as_source(tensor)
        batches = as_source([tensor, tensor])
        batches.examples(0, 1)
        tensor.zero_()
        np.testing.assert_array_equal(source.examples(0, 20), ROWS)
        np.testing.assert_array_equal(batches_of(batches, 1, 20)[0], ROWS)

    @parameterized.parameters(
        (lambda: torch.ones(3, 2, device="meta"), "the device 'meta'"),
        (lambda: torch.eye(3).to_sparse(), "sparse_coo"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse_csr"),
        (lambda: torch.tensor([1.0, float("nan")]), "NaN or infinity"),
        (lambda: torch.tensor(1.0), "a single number"),
        (lambda: torch.tensor([2**40]), "integers from"),
        (lambda: torch.utils.data.TensorDataset(torch.ones(3, 2)), "DataLoader"),
        (lambda: nested(), "nested tensor.*to_padded_tensor"),
        (lambda: {"x": nested(torch.jagged), "y": np.ones(2)}, "nested tensor.*to_padded_tensor"),
        (lambda: (np.ones(2), nested()), "nested tensor.*to_padded_tensor"),
        (lambda: as_source([nested()]).sizes(), "nested tensor.*to_padded_tensor"),
    )
    def test_refused(self, make, message):
        with self.assertRaisesRegex(apd_jax.UserError, message):
            as_source(make())

    @parameterized.product(workers=(0, 2), shuffle=(False, True))
    def test_loader(self, workers, shuffle):
        pairs = torch.utils.data.TensorDataset(torch.tensor(ROWS), torch.arange(20))
        loader = torch.utils.data.DataLoader(
            pairs, batch_size=6, shuffle=shuffle, num_workers=workers
        )
        with self.assertLogs(level="WARNING") as logs:
            found = batches_of(as_source(loader), 7, 6)
        self.assertLen([r for r in logs.records if "left out" in r.getMessage()], 1)
        for x, place in found:
            np.testing.assert_array_equal(x, ROWS[np.asarray(place)])
        for epoch in (found[:3], found[3:6]):
            places = np.concatenate([place for _, place in epoch])
            self.assertLen(set(places.tolist()), 18)
            if not shuffle:
                np.testing.assert_array_equal(places, np.arange(18))

    def test_workers_that_persist(self):
        loader = torch.utils.data.DataLoader(
            torch.tensor(ROWS), batch_size=5, num_workers=1, persistent_workers=True
        )
        source = as_source(loader)
        for _ in range(2):
            found = np.concatenate(batches_of(source, 8, 5))
            np.testing.assert_array_equal(found, np.concatenate([ROWS, ROWS]))
            source = source.again()

    def test_a_loader_of_dicts_trains(self):
        class Dicts(torch.utils.data.Dataset):
            def __len__(self):
                return 20

            def __getitem__(self, index):
                return {"x": torch.tensor(ROWS[index] / 60)}

        loader = torch.utils.data.DataLoader(Dicts(), batch_size=8)
        params = networks.mlp().params
        target = apd_jax.Target(lambda p, batch: networks.mlp_apply(p, batch["x"]), params)
        options = dict(num_components=3, topk=1.0, steps=5, rank=1, relative_losses=False)
        found = apd_jax.decompose(target, loader, **options)
        self.assertEqual(found.settings.batch_size, 8)

    def test_single_examples_and_wrapped_arrays(self):
        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(torch.tensor(ROWS))

        wrapped = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.tensor(ROWS)), batch_size=5
        )
        labelled = torch.utils.data.TensorDataset(torch.tensor(ROWS), torch.arange(20))
        labelled = torch.utils.data.DataLoader(labelled, batch_size=5)
        first = r"if the network takes only the first.*\(batch\[0\] for batch"
        for data, message in (
            (Stream(), "single examples"),
            (wrapped, f"tuple of one array|list of one array.*{first}"),
            (labelled, f"of 2 arrays.*{first}"),
            ([(ROWS, ROWS, np.arange(20))], f"tuple of 3 arrays.*{first}"),
        ):
            with self.assertRaisesRegex(apd_jax.UserError, message):
                apd_jax.decompose(networks.mlp(), data, num_components=3, topk=1.0, steps=2)


def columns():
    """A data set of numbers, tokens and text."""
    return datasets.Dataset.from_dict(
        {"x": ROWS, "token": np.arange(20), "text": [str(i) for i in range(20)]}
    )


@absltest.skipUnless(_HAS["datasets"], "needs datasets")
class DatasetsTest(parameterized.TestCase):
    @parameterized.parameters(None, "numpy", "jax", "torch")
    def test_formats(self, kind):
        if kind == "torch" and not _HAS["torch"]:
            self.skipTest("needs torch")
        data = columns().select_columns(["x", "token"]).with_format(kind)
        found = batches_of(as_source(data, 3), 6, 8)
        expected = batches_of(as_source({"token": np.arange(20), "x": ROWS}, 3), 6, 8)
        jax.tree.map(np.testing.assert_array_equal, found, expected)

    @parameterized.parameters(None, "numpy", "jax", "torch")
    def test_columns_alone_and_beside_arrays(self, kind):
        data = columns().with_format(kind)
        found = batches_of(as_source({"a": data["x"], "b": np.arange(20)}, 1), 3, 8)
        for batch in found:
            np.testing.assert_array_equal(batch["a"], ROWS[np.asarray(batch["b"])])
        alone = batches_of(as_source(data["x"], 1), 3, 8)
        jax.tree.map(np.testing.assert_array_equal, alone, [batch["a"] for batch in found])

    def test_format_of_some_columns_and_transforms(self):
        data = columns()
        chosen = as_source(data.with_format("numpy", columns=["x"])).examples(0, 4)
        self.assertEqual(jax.tree.map(jnp.shape, chosen), {"x": (4, 3)})
        made = data.with_transform(lambda rows: {"y": np.array(rows["token"]) * 2.0})
        self.assertEqual(as_source(made).examples(0, 20)["y"].tolist(), [*range(0, 40, 2)])
        fewer = data.select_columns(["token"]).filter(lambda row: row["token"] % 2)
        self.assertEqual(as_source(fewer).examples(0, 20)["token"].tolist(), [*range(1, 20, 2)])

    def test_a_network_of_one_array(self):
        data = columns().select_columns(["x", "token"])
        for given in (data, {"x": ROWS, "token": np.arange(20)}):
            with self.assertRaisesRegex(apd_jax.UserError, r"takes a single array.* data\['"):
                apd_jax.decompose(networks.mlp(), given, num_components=3, topk=1.0, steps=2)

    def test_descriptions_tell_data_apart(self):
        data = columns().select_columns(["x"])
        other = datasets.Dataset.from_dict({"x": ROWS + 1})
        self.assertEqual(as_source(data).describe(), as_source(data).describe())
        self.assertNotEqual(as_source(data).describe(), as_source(other).describe())

    @parameterized.parameters(None, "numpy", "jax", "torch")
    def test_ragged_columns_are_refused(self, kind):
        data = datasets.Dataset.from_dict({"ids": [[1, 2], [3], [4, 5, 6]]}).with_format(kind)
        for given in (data, data["ids"], {"x": data["ids"], "y": np.zeros(3)}):
            with self.assertRaisesRegex(apd_jax.UserError, "'ids'.*pad or cut"):
                as_source(given)

    @parameterized.product(
        kind=(None, "numpy", "jax", "torch"),
        column=(
            ([{"u": 1, "v": 2.0}, {"u": 2, "v": 3.0}], r"fields with dataset.flatten\(\)"),
            ([[{"u": 1}], [{"u": 2}]], r"fields with dataset.flatten\(\)"),
            ([1, None], "fill missing entries with dataset.map"),
            ([[1, 2], [None, 3]], "fill missing entries with dataset.map"),
            ([[1.0, 2.0], None], "fill missing entries with dataset.map"),
            ([True, None], "fill missing entries with dataset.map"),
            ([datetime.date(2020, 1, 1)] * 2, "dates.* into numbers with dataset.map"),
            ([datetime.datetime(2020, 1, 1)] * 2, "dates.* into numbers with dataset.map"),
            (["a", "b"], "text into numbers.*with dataset.map"),
        ),
    )
    def test_columns_that_are_no_numbers(self, kind, column):
        if kind == "torch" and not _HAS["torch"]:
            self.skipTest("needs torch")
        values, message = column
        data = datasets.Dataset.from_dict({"x": values}).with_format(kind)
        with self.assertRaisesRegex(apd_jax.UserError, f"{message}|select_columns.*{message}"):
            as_source(data)

    @parameterized.parameters(
        (lambda: columns(), r"'text'.*leave the column out with dataset.select_columns"),
        (lambda: columns().with_format("pandas"), r"with_format\('numpy'\)"),
        (lambda: datasets.DatasetDict(train=columns()), r"choose one of them, such as data\['t"),
        (lambda: {"train": columns(), "test": columns()}, "choose one of them"),
        (lambda: columns().select([]), "at least one, got N = "),
        (lambda: {"x": columns()["x"], "y": np.zeros(3)}, r"the same N.* got N = \[20, 3\]"),
        (lambda: datasets.Dataset.from_dict({"x": [1.0, None]}), "'x'.*NaN"),
    )
    def test_refused(self, make, message):
        with self.assertRaisesRegex(apd_jax.UserError, message):
            as_source(make())

    def test_streams(self):
        stream = columns().select_columns(["x"]).to_iterable_dataset()
        for kind in (None, "numpy"):
            found = batches_of(as_source(stream.with_format(kind).batch(6)), 4, 6)
            np.testing.assert_array_equal(np.concatenate([b["x"] for b in found])[:18], ROWS[:18])
        with self.assertRaisesRegex(apd_jax.UserError, "single examples"):
            target = apd_jax.Target(
                lambda p, batch: networks.mlp_apply(p, batch["x"]), networks.mlp().params
            )
            apd_jax.decompose(target, stream, num_components=3, topk=1.0, steps=2)

    @absltest.skipUnless(_HAS["torch"], "needs torch")
    def test_a_loader_of_lists(self):
        data = columns().select_columns(["x"])
        target = apd_jax.Target(
            lambda p, batch: networks.mlp_apply(p, batch["x"]), networks.mlp().params
        )
        options = dict(num_components=3, topk=1.0, steps=2)
        with self.assertRaisesRegex(apd_jax.UserError, r"dataset.with_format\('torch'\)"):
            loader = torch.utils.data.DataLoader(data, batch_size=5)
            apd_jax.decompose(target, loader, **options)
        loader = torch.utils.data.DataLoader(data.with_format("torch"), batch_size=5)
        apd_jax.decompose(target, loader, relative_losses=False, rank=1, **options)

    def test_a_tokenizers_output(self):
        encoded = collections.UserDict(input_ids=np.ones((4, 3), int), attention_mask=np.ones(4))
        self.assertEqual(set(as_source(encoded).examples(0, 2)), {"input_ids", "attention_mask"})


@absltest.skipUnless(_HAS["grain"], "needs grain")
class GrainTest(parameterized.TestCase):
    @parameterized.parameters(
        lambda data: data.batch(6),
        lambda data: data.shuffle(seed=1).repeat().batch(6),
        lambda data: data.batch(6).to_iter_dataset(),
        lambda data: data.to_iter_dataset().batch(6),
        lambda data: iter(data.repeat(3).batch(6, drop_remainder=True)),
    )
    def test_data_sets(self, make):
        data = make(grain.MapDataset.source([{"x": row} for row in ROWS]))
        found = batches_of(as_source(data), 5, 6)
        rows = {tuple(row) for batch in found for row in np.asarray(batch["x"])}
        self.assertContainsSubset(rows, {tuple(row) for row in ROWS})
        self.assertGreater(len(rows), 15)

    def test_loader(self):
        loader = grain.DataLoader(
            data_source=ROWS,
            sampler=grain.samplers.IndexSampler(20, shuffle=True, seed=0, num_epochs=1),
            operations=[grain.transforms.Batch(6)],
        )
        self.assertEqual(batches_of(as_source(loader), 5, 6)[4].shape, (6, 3))

    def test_tuples(self):
        data = grain.MapDataset.source([(row, 1) for row in ROWS]).batch(5)
        with self.assertRaisesRegex(apd_jax.UserError, "if the network takes only the first"):
            apd_jax.decompose(networks.mlp(), data, num_components=3, topk=1.0, steps=2)

    def test_single_examples(self):
        data = grain.MapDataset.source(ROWS).shuffle(seed=0)
        for given in (data, data.to_iter_dataset()):
            with self.assertRaisesRegex(apd_jax.UserError, "single examples"):
                apd_jax.decompose(networks.mlp(), given, num_components=3, topk=1.0, steps=2)


if __name__ == "__main__":
    absltest.main()
