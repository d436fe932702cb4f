"""Arrays that JAX or files do not know: other byte orders and precisions, masks, keys, objects."""

import dataclasses
import enum
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from safetensors import numpy as safetensors

import apd_jax
from apd_jax.data.numbers import to_numpy
from apd_jax.decomposition.given_inputs import given_inputs
from apd_jax.errors import UserError
from apd_jax.objective.objective import Objective

X = np.asarray(networks.normal(5, 8, 3))


def network(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def params(**more):
    return {"w": networks.normal(0, 3, 5), "v": networks.normal(1, 5, 2)} | more


class Kind(enum.Enum):
    W = 1


class Text(str, enum.Enum):  # noqa: UP042  unlike StrEnum's, its str() is no value
    W = "w"


@dataclasses.dataclass
class Unknown:
    w: jax.Array


OTHER = {
    "big_endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "little_endian": lambda a: a.astype(a.dtype.newbyteorder("<")),
    "extended": lambda a: a.astype(np.longdouble),
    "double": lambda a: a.astype(np.float64),
    "fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=0)[::2],
    "reversed": lambda a: a[::-1].copy()[::-1],
    "matrix": np.asmatrix,
}


class OtherArraysTest(parameterized.TestCase):
    """All hold the same numbers."""

    @parameterized.parameters(*OTHER)
    def test_data(self, kind):
        found = to_numpy(OTHER[kind](X))
        np.testing.assert_array_equal(jnp.asarray(found), X)
        whole = OTHER[kind](np.arange(24).reshape(8, 3))
        np.testing.assert_array_equal(jnp.asarray(to_numpy(whole)), np.arange(24).reshape(8, 3))

    @parameterized.parameters(*OTHER)
    def test_parameters(self, kind):
        given = jax.tree.map(lambda leaf: OTHER[kind](np.asarray(leaf)), params())
        target = apd_jax.Target(network, given, inputs=X)
        np.testing.assert_allclose(target(X), network(params(), X), rtol=1e-6)
        for name, weight in target.weights.items():
            np.testing.assert_allclose(weight, params()[name], rtol=1e-6)

    @parameterized.parameters(*OTHER)
    def test_inputs(self, kind):
        found = given_inputs(apd_jax.Target(network, params()), OTHER[kind](X))
        np.testing.assert_array_equal(jnp.asarray(found, jnp.float32), X)

    def test_inputs_in_other_containers(self):
        target = apd_jax.Target(network, params())
        np.testing.assert_allclose(given_inputs(target, X.tolist()), X)
        self.assertIsInstance(given_inputs(target, jnp.asarray(X)), jax.Array)

    def test_parameters_that_jax_knows_stay_the_same_object(self):
        given = params(n=3, none=None, key=jax.random.key(0))
        self.assertIs(apd_jax.Target(network, given).params, given)
        stacked = [given, (given,)]
        self.assertIs(apd_jax.Target(network, stacked).params, stacked)


class Loader:
    """Can be iterated again and again, as a torch DataLoader."""

    def __iter__(self):
        yield X


class PublicFunctionsTest(parameterized.TestCase):
    """Functions outside of `decompose` take the same arrays, and refuse what is none."""

    def setUp(self):
        super().setUp()
        self.target = apd_jax.Target(network, params(), inputs=X)
        self.components = networks.components(self.target, 3, 1)

    def of_inputs(self, x):
        """What the functions of inputs give."""
        apd_jax.check_target(apd_jax.Target(network, params()), x)
        self.assertEqual(apd_jax.Target(network, params(), inputs=x).sites, self.target.sites)
        given = self.target, self.components, x
        return {
            "gradient": apd_jax.gradient_attributions(*given),
            "ablation": apd_jax.ablation_attributions(*given),
            "activation": apd_jax.activation_attributions(*given),
            "composed": apd_jax.composed_apply(*given),
            "masked": apd_jax.masked_apply(*given, np.ones((8, 3))),
        }

    @parameterized.parameters(*OTHER, "list")
    @pytest.mark.slow
    def test_inputs(self, kind):
        expected = self.of_inputs(X)
        found = self.of_inputs(X.tolist() if kind == "list" else OTHER[kind](X))
        for name, values in found.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-6)

    @parameterized.parameters(
        (np.ma.masked_greater(X, 1), "a masked array"),
        (X.astype(str), "leave text out"),
        (X.astype(object), "numbers"),
        ({"x": X, 1: X}, "keys can't be sorted"),
        (iter([X]), "inputs must be arrays .* got an iterator: give one of its batches"),
        (Loader(), "inputs must be arrays .* got a Loader: give one of its batches"),
        ({"x": Loader()}, "inputs must be arrays .* got a Loader"),
    )
    def test_inputs_that_are_refused(self, x, message):
        given = self.target, self.components, x
        for use in (
            lambda: apd_jax.check_target(self.target, x),
            lambda: apd_jax.Target(network, params(), inputs=x),
            lambda: apd_jax.gradient_attributions(*given),
            lambda: apd_jax.ablation_attributions(*given),
            lambda: apd_jax.activation_attributions(*given),
            lambda: apd_jax.composed_apply(*given),
            lambda: apd_jax.masked_apply(*given, np.ones((8, 3))),
            lambda: given_inputs(self.target, x),
        ):
            with self.assertRaisesRegex(UserError, message):
                use()

    @parameterized.parameters(*OTHER, "list")
    @pytest.mark.slow
    def test_tables(self, kind):
        other = np.ndarray.tolist if kind == "list" else OTHER[kind]
        scores = np.abs(X)
        for function in (apd_jax.batch_topk_mask, apd_jax.topk_mask):
            np.testing.assert_array_equal(function(other(scores), 1), function(scores, 1))
        rest = np.ones(8, np.float32)
        masked = lambda *mask: apd_jax.masked_apply(self.target, self.components, X, *mask)  # noqa: E731
        np.testing.assert_array_equal(masked(other(scores), rest.tolist()), masked(scores, rest))
        matrices = np.asarray(self.components["w"].matrices())
        for made in (
            apd_jax.Factors.from_matrices(other(matrices) if kind != "matrix" else matrices),
            apd_jax.Factors.from_uv(matrices.tolist(), np.stack([np.eye(5)] * 3).astype(">f8")),
        ):
            np.testing.assert_allclose(made.matrices(), matrices, atol=1e-5)

    @parameterized.parameters(
        (None,), ("x",), ({"x": X},), (np.ma.masked_greater(X, 1),), ([[1, 2], [3]],), (Loader(),)
    )
    def test_tables_that_are_refused(self, table):
        for use, message in (
            (lambda: apd_jax.batch_topk_mask(table, 1), "scores must be real numbers"),
            (lambda: apd_jax.topk_mask(table, 1), "scores must be real numbers"),
            (
                lambda: apd_jax.masked_apply(self.target, self.components, X, table),
                "mask must be one array",
            ),
            (lambda: apd_jax.Factors.from_matrices(table), "matrices must be|matrices: expected"),
            (lambda: apd_jax.Factors.from_uv(table, table), "U must be|U: expected"),
        ):
            with self.assertRaisesRegex(UserError, message):
                use()

    @parameterized.parameters(
        ([True] * 7 + [False],),
        (np.array([1] * 7 + [0], ">i4"),),
        (lambda x: jnp.arange(len(x)) < 7,),
    )
    @pytest.mark.slow
    def test_what_counts(self, valid):
        given = self.target, self.components, X
        for function in (
            apd_jax.gradient_attributions,
            apd_jax.ablation_attributions,
            apd_jax.activation_attributions,
        ):
            expected = function(*given, valid=jnp.arange(8) < 7)
            np.testing.assert_array_equal(function(*given, valid=valid), expected)
            for bad in (3, "x", [True] * 7, [1.0] * 8, np.ma.masked_array([True] * 8, [0] * 8)):
                with self.assertRaisesRegex(UserError, "valid must"):
                    function(*given, valid=bad)

    @parameterized.parameters((0,), ("k",), (2.5,), (np.zeros(2, np.float32),), ([0, 1],))
    def test_keys_that_are_refused(self, key):
        given = self.target, self.components, X
        for use in (
            lambda: apd_jax.init_components(key, self.target, num_components=2),
            lambda: apd_jax.gradient_attributions(*given, mode="sketch", num_probes=2, key=key),
            lambda: apd_jax.gradient_attributions(*given, key=key),
        ):
            with self.assertRaisesRegex(UserError, "key must be a PRNG key"):
                use()

    @parameterized.parameters(2.5, "2", True)
    def test_numbers_of_directions_that_are_refused(self, count):
        with self.assertRaisesRegex(UserError, "num_probes must be a whole number or None"):
            apd_jax.gradient_attributions(
                self.target,
                self.components,
                X,
                mode="sketch",
                num_probes=count,
                key=jax.random.key(0),
            )

    def test_shuffled(self):
        given = jax.tree.map(np.asarray, params())
        expected = apd_jax.shuffled(given, 0)
        found = apd_jax.shuffled(jax.tree.map(OTHER["big_endian"], given), 0)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        with self.assertRaisesRegex(UserError, "'w': a masked array"):
            apd_jax.shuffled({"w": np.ma.masked_greater(X, 1)}, 0)


class RefusedTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"w": np.ma.masked_array(np.ones(3), mask=[0, 1, 0])}, "'w': a masked array"),
        ({"w": np.ones(3).astype(object)}, "'w' must be an array of numbers, got one of object"),
        ({"w": np.array(["a"])}, "'w' must be an array of numbers, got one of <U1"),
        ({"a": {"act": jnp.tanh}}, "'a/act' must be .* got a PjitFunction: .*functools.partial"),
        ({"name": "net"}, "'name' must be an array of numbers, got a str"),
        (Unknown(X), "the parameters must be .* got a Unknown: register its class"),
        ({"a": X, 0: X}, "whose keys can't be sorted"),
        ([{b"w": X}], "the key b'w' of type bytes, which can't be saved: use text"),
        ({"a": ({(0, Kind.W): X},)}, "the key <Kind.W: 1> of type Kind"),
    )
    def test_parameters(self, given, message):
        with self.assertRaisesRegex(UserError, message):
            apd_jax.Target(network, given)

    @parameterized.parameters(
        (X[0], "like a single example, without the batch axis"),
        (X[:, :2], r"the network fails on inputs float32\[8, 2\]"),
        (X[:0], "the batch is empty"),
        (np.ma.masked_greater(X, 1), "a masked array"),
        (X.astype(str), "got an array of <U.*leave text out"),
        (iter([X]), "inputs must be arrays .* got an iterator"),
        (Loader(), "inputs must be arrays .* got a Loader: give one of its batches"),
        (None, "hold no arrays"),
        ({"x": X, 1: X}, "keys can't be sorted"),
    )
    def test_inputs(self, x, message):
        target = apd_jax.Target(network, params(), inputs=X)
        found = networks.components(target, 3, 1)
        settings = apd_jax.Settings(Objective(topk=1.0), 3, steps=1, batch_size=8)
        decomposition = apd_jax.Decomposition(target, found, settings)
        for method in ("attributions", "mask", "__call__", "see", "summary", "evidence"):
            with self.subTest(method), self.assertRaisesRegex(UserError, message):
                getattr(decomposition, method)(x)

    def test_outputs_that_are_no_arrays(self):
        target = apd_jax.Target(lambda p, x: {"y": network(p, x), "n": 3}, params())
        with self.assertRaisesRegex(UserError, r"real numbers, got \['int32', 'float32'\]"):
            apd_jax.check_target(target, X)


class SavedTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "saved"

    def save(self, target, example):
        settings = apd_jax.Settings(Objective(topk=1.0), 3, steps=1, batch_size=8, rank=1)
        found = networks.components(target, 3, 1)
        apd_jax.Decomposition(target, found, settings, [], example).save(self.folder)
        json.loads((self.folder / "config.json").read_text())

    def saved(self, **more):
        """A decomposition of a network with more parameters, after `save` and `load`."""
        target = apd_jax.Target(network, params(**more), inputs=X)
        self.save(target, X[:3])
        loaded = apd_jax.load(self.folder, network)
        np.testing.assert_array_equal(loaded.target(X), target(X))
        return loaded.target.params

    def test_keys(self):
        for key in (jax.random.key(3), jax.random.split(jax.random.key(3, impl="rbg"), 2)):
            found = self.saved(key=key)["key"]
            self.assertEqual(found.dtype, key.dtype)
            np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(key))

    def test_empty_arrays(self):
        found = self.saved(a=jnp.zeros((0, 3)), b=np.zeros((2, 0), np.int8))
        self.assertEqual((found["a"].shape, found["a"].dtype), ((0, 3), jnp.float32))
        self.assertEqual((found["b"].shape, found["b"].dtype), ((2, 0), jnp.int8))

    def test_numbers_of_few_bits(self):
        kinds = ("int4", "uint4", "float8_e4m3fn", "float8_e5m2", "bfloat16", "float16")
        given = {kind: jnp.array([[1, 0], [3, 2]], jnp.dtype(kind)) for kind in kinds}
        found = self.saved(**given)
        plain = safetensors.load_file(self.folder / "components.safetensors")
        for kind, leaf in given.items():
            self.assertEqual(found[kind].dtype, leaf.dtype)
            np.testing.assert_array_equal(found[kind], leaf)
            np.testing.assert_array_equal(plain[f"target/{kind}"].astype("f4"), [[1, 0], [3, 2]])

    @parameterized.parameters(
        ({"e": np.zeros((8, 0), np.float32)},),
        ({"e": np.zeros((8, 0, 2), np.int8), "a": X},),
        ({"n": np.arange(8).astype("uint2")},),
        ({"n": np.arange(8).astype("int4"), "e": np.zeros((8, 0), bool)},),
        ({"f": X.astype("float8_e5m2"), "b": X.astype("bfloat16")},),
    )
    def test_inputs(self, more):
        def keyed(params, batch):
            rest = [batch[name].astype("f4").reshape(len(batch["v"]), -1) for name in more]
            return network(params, batch["v"]) + jnp.concatenate(rest, axis=1).sum(1)[:, None]

        x = {"v": X} | more
        self.save(apd_jax.Target(keyed, params(), inputs=x), jax.tree.map(lambda a: a[:3], x))
        found = apd_jax.load(self.folder, keyed).example
        for name, leaf in x.items():
            self.assertEqual(found[name].dtype, leaf.dtype)
            np.testing.assert_array_equal(found[name], leaf[:3])

    def test_inputs_that_are_all_empty(self):
        def empty(params, x):
            return network(params, jnp.ones((len(x), 3)))

        x = np.zeros((3, 0), np.float32)
        self.save(apd_jax.Target(empty, params(), inputs=x), x)
        self.assertEqual(apd_jax.load(self.folder, empty).example.shape, (3, 0))
        with self.assertRaisesRegex(UserError, "does not compute what the decomposed network"):
            apd_jax.load(self.folder, lambda params, x: 2 * empty(params, x))

    @parameterized.parameters(
        (np.int64(0), np.int64(1), "first"),
        ((0, "w"), (1, ("v", np.int8(2))), ("x", 1)),
        (False, True, np.str_("x")),
        (0.5, np.float32(0.1), None),
        (Text.W, np.str_("v"), "x"),
    )
    def test_keys_of_dicts(self, w, v, x):
        def keyed(params, batch):
            return network({"w": params[w], "v": params[v]}, batch[x])

        target = apd_jax.Target(keyed, {w: params()["w"], v: params()["v"]}, inputs={x: X})
        self.save(target, {x: X[:3]})
        like = {w: jnp.zeros((3, 5)), v: jnp.zeros((5, 2))}
        for given in ({}, {"params": like}):
            loaded = apd_jax.load(self.folder, keyed, **given)
            self.assertEqual(loaded.target.params.keys(), {w, v})
            np.testing.assert_array_equal(loaded.target({x: X}), target({x: X}))

    def test_inputs_whose_keys_are_not_saved_are_asked_for(self):
        def keyed(params, batch):
            return network(params, batch[b"x"])

        self.save(apd_jax.Target(keyed, params(), inputs={b"x": X}), {b"x": X[:3]})
        with self.assertRaisesRegex(UserError, r"keys that JSON lacks.*load\(\.\.\., inputs=x\)"):
            apd_jax.load(self.folder, keyed)
        apd_jax.load(self.folder, keyed, inputs={b"x": X})


@pytest.mark.slow
class DecomposedTest(absltest.TestCase):
    def test_the_same_components(self):
        options = {"num_components": 3, "topk": 1.0, "steps": 2, "batch_size": 4, "rank": 1}
        given = jax.tree.map(lambda leaf: OTHER["big_endian"](np.asarray(leaf)), params())
        plain = apd_jax.decompose(apd_jax.Target(network, params()), X, **options)
        other = apd_jax.decompose(apd_jax.Target(network, given), OTHER["big_endian"](X), **options)
        jax.tree.map(np.testing.assert_array_equal, other.components, plain.components)


if __name__ == "__main__":
    absltest.main()
