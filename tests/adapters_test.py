"""Models of Flax and Equinox as targets: the same outputs, and the sites of the traced program."""

import functools
import inspect
import json
import tempfile
from typing import NamedTuple

import equinox as eqx
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from flax import nnx

import apd_jax
from apd_jax.sites.adapters import fixed


class _Linen(nn.Module):
    @nn.compact
    def encode(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(4, name="first")(x))
        return nn.Dense(2, name="second")(nn.relu(x))

    def __call__(self, x, train):
        return self.encode(x, train) ** 2


class _Nnx(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs))
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.rnn(x))


class AdaptersTest(absltest.TestCase):
    x = jax.random.normal(jax.random.key(0), (4, 5, 3))

    def check(self, target, expected, names):
        self.assertEqual(list(target.sites), names)
        np.testing.assert_allclose(target(self.x), expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(jax.jit(target)(self.x), expected, rtol=1e-5, atol=1e-5)
        apd_jax.check_target(target, self.x)

    def test_linen_with_other_collections_method_and_keywords(self):
        module = _Linen()
        variables = module.init(jax.random.key(1), self.x, train=False)
        target = apd_jax.Target.from_flax(
            module, variables, method="encode", inputs=self.x, train=False
        )
        expected = module.apply(variables, self.x, train=False, method="encode")
        self.check(target, expected, ["first/kernel", "second/kernel"])

    def test_linen_batch_statistics_in_training_are_refused(self):
        module = _Linen()
        variables = module.init(jax.random.key(1), self.x, train=False)
        apply = lambda params, x: module.apply(  # noqa: E731
            {**variables, "params": params}, x, train=True, mutable="batch_stats"
        )[0]
        target = apd_jax.Target(apply, variables["params"], inputs=self.x)
        with self.assertRaisesRegex(apd_jax.errors.UserError, "depends on the other examples"):
            apd_jax.check_target(target, self.x)

    @pytest.mark.slow
    def test_nnx_model_with_state_of_its_own(self):
        model = _Nnx(nnx.Rngs(0))
        target = apd_jax.Target.from_nnx(model, inputs=self.x)
        names = [f"rnn/cell/dense_{part}/kernel/value" for part in "hi"]
        self.check(target, model(self.x), names)

    @pytest.mark.slow
    def test_equinox_model_of_one_example(self):
        key = jax.random.key(2)
        model = eqx.nn.Sequential(
            [eqx.nn.Lambda(jnp.ravel), eqx.nn.MLP(15, "scalar", 4, 1, key=key)]
        )
        target = apd_jax.Target.from_equinox(model, inputs=self.x)
        names = [f"layers/1/layers/{layer}/weight" for layer in range(2)]
        self.check(target, jax.vmap(model)(self.x), names)
        self.assertIn("(equinox/nn/_linear.py:", str(target.sites))  # not where it is installed

    @pytest.mark.slow
    def test_equinox_model_with_a_state(self):
        model, state = _with_statistics("batch", 1)
        target = apd_jax.Target.from_equinox(model, state=state, inputs=self.x)
        ready = eqx.Partial(eqx.nn.inference_mode(model), state=state)
        self.check(target, jax.vmap(ready)(self.x)[0], ["first/weight", "second/weight"])
        self.assertFalse(model.norm.inference)

    def test_equinox_state_that_is_missing_or_wrong(self):
        model, state = _with_statistics("batch", 1)
        with self.assertRaisesRegex(apd_jax.UserError, r"needs a state.*\(model, state=state\)"):
            apd_jax.Target.from_equinox(model)
        with self.assertRaisesRegex(apd_jax.UserError, "state must be .*State, got a dict"):
            apd_jax.Target.from_equinox(model, state={})
        with self.assertRaisesRegex(apd_jax.UserError, "must return a tuple .* got a .*Tracer"):
            apd_jax.Target.from_equinox(_Alone(jnp.ones((3, 2))), state=state)(self.x)
        other = eqx.nn.make_with_state(_Shifted)(1.0)[1]
        with self.assertRaisesRegex(apd_jax.UserError, "state is of another model"):
            apd_jax.Target.from_equinox(model, state=other)
        model, state = eqx.nn.make_with_state(_Shifted)(1.0)
        model(self.x[0], state)
        with self.assertRaisesRegex(apd_jax.UserError, "not the latest"):
            apd_jax.Target.from_equinox(model, state=state)

    def test_equinox_model_that_holds_its_state(self):
        model, state = _with_statistics("batch", 1)
        ready = eqx.Partial(eqx.nn.inference_mode(model), state=state)
        target = apd_jax.Target.from_equinox(ready)
        np.testing.assert_array_equal(target(self.x)[0], jax.vmap(ready)(self.x)[0])


class _EqxStatistics(eqx.Module):
    """A model whose batch statistics are a state, and which is in training mode."""

    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    second: eqx.nn.Linear

    def __init__(self, mode, key):
        self.first, self.second = eqx.nn.Linear(15, 4, key=key), eqx.nn.Linear(4, 2, key=key)
        newer = "mode" in inspect.signature(eqx.nn.BatchNorm).parameters  # than Equinox 0.11
        self.norm = eqx.nn.BatchNorm(4, "examples", **({"mode": mode} if newer else {}))
        self.drop = eqx.nn.Dropout()

    def __call__(self, x, state):
        h, state = self.norm(self.first(jnp.ravel(x)), state)
        return self.second(self.drop(jax.nn.relu(h))), state


def _with_statistics(mode, seed):
    """A model and its state after a few batches."""
    key = jax.random.key(seed)
    model, state = eqx.nn.make_with_state(_EqxStatistics)(mode, key)
    once = eqx.tree_at(lambda m: m.drop, model, lambda x: x)
    call = jax.vmap(once, axis_name="examples", in_axes=(0, None), out_axes=(0, None))
    for batch in jax.random.normal(key, (2, 8, 5, 3)) + seed:
        state = call(batch, state)[1]
    return model, state


class _Alone(eqx.Module):
    """Takes a state and does not return it."""

    weight: jax.Array

    def __call__(self, x, state):
        return x @ self.weight


class _Shift(NamedTuple):
    by: jax.Array


class _Shifted(eqx.Module):
    """A model whose state is kept in a class."""

    linear: eqx.nn.Linear
    index: eqx.nn.StateIndex

    def __init__(self, shift):
        self.linear = eqx.nn.Linear(15, 2, key=jax.random.key(0))
        self.index = eqx.nn.StateIndex(_Shift(jnp.full(2, shift)))

    def __call__(self, x, state):
        by = state.get(self.index).by
        return self.linear(jnp.ravel(x)) + by, state.set(self.index, _Shift(by + 1))


class _Keywords(nn.Module):
    @nn.compact
    def __call__(self, x, axes, options, mask, factor, train):
        h = nn.Dense(options["layers"][0]["width"])(x.sum(axis=axes)) * options["scale"]
        kept = int(np.sum(mask)) if isinstance(mask, np.ndarray) and not train else 0
        return nn.Dense(2)(h[:, :kept]) * factor


class _Table(eqx.Module):
    """A model with an array that is no parameter."""

    columns: jax.Array
    linear: eqx.nn.Linear

    def __init__(self, columns, key):
        self.columns, self.linear = jnp.asarray(columns), eqx.nn.Linear(2, 2, key=key)

    def __call__(self, x):
        return self.linear(x[:, self.columns].mean(axis=0))


class _NnxStatistics(nnx.Module):
    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.norm.mean[...] += seed

    def __call__(self, x):
        return self.drop(self.norm(self.first(x)))


class TrainingModeTest(absltest.TestCase):
    """What Flax and Equinox refuse to run is refused with the way out."""

    x = jax.random.normal(jax.random.key(0), (4, 3))

    def test_linen(self):
        class Net(nn.Module):
            statistics: bool

            @nn.compact
            def __call__(self, x, train=True):
                x = nn.Dense(3)(x)
                if self.statistics:
                    return nn.BatchNorm(use_running_average=not train)(x)
                return nn.Dropout(0.5, deterministic=not train)(x)

        for statistics in (True, False):
            module = Net(statistics)
            variables = module.init(jax.random.key(0), self.x, train=False)
            with self.assertRaisesRegex(apd_jax.UserError, "from_flax the .* train=False"):
                apd_jax.Target.from_flax(module, variables, inputs=self.x)
            apd_jax.Target.from_flax(module, variables, inputs=self.x, train=False)

    def test_equinox(self):
        key = jax.random.key(0)
        model = eqx.nn.Sequential([eqx.nn.Linear(3, 4, key=key), eqx.nn.Dropout(0.5)])
        with self.assertRaisesRegex(apd_jax.UserError, r"eqx.nn.inference_mode\(model\)"):
            apd_jax.Target.from_equinox(model, inputs=self.x)
        apd_jax.Target.from_equinox(eqx.nn.inference_mode(model), inputs=self.x)


class LoadTest(parameterized.TestCase):
    """What is fixed of a model is saved with its decomposition, and put into the one given."""

    x = AdaptersTest.x

    def check(self, target, *models):
        components = apd_jax.init_components(jax.random.key(3), target, num_components=2, rank=1)
        objective = apd_jax.Objective(coefficients=apd_jax.Coefficients(minimality=1.0), topk=1.0)
        settings = apd_jax.Settings(objective=objective, num_components=2)
        made = apd_jax.Decomposition(target, components, settings, example=self.x)
        directory = self.enterContext(tempfile.TemporaryDirectory())
        made.save(directory)
        for model in models:
            loaded = apd_jax.load(directory, model)
            np.testing.assert_allclose(loaded.target(self.x), target(self.x), rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(loaded(self.x), made(self.x), rtol=1e-5, atol=1e-6)
        return directory

    @pytest.mark.slow
    def test_linen_with_batch_statistics_a_method_and_a_keyword(self):
        module = _Linen()
        variables = module.init(jax.random.key(1), self.x, train=False)
        variables["batch_stats"]["norm"]["mean"] += 1
        make = functools.partial(
            apd_jax.Target.from_flax, module, method="encode", inputs=self.x, train=False
        )
        other = make(variables=module.init(jax.random.key(2), self.x, train=False))
        directory = self.check(make(variables=variables), module, _Linen(), other)
        with self.assertRaisesRegex(apd_jax.UserError, "the method 'encode' .* Target.from_flax"):
            apd_jax.load(directory, nn.Dense(2))

    @parameterized.parameters("frozen", "partitioned", "logically partitioned")
    @pytest.mark.slow
    def test_linen_with_containers_of_flax(self, kind):
        init = nn.initializers.lecun_normal()
        if "partitioned" in kind:
            how = nn.with_partitioning if kind == "partitioned" else nn.with_logical_partitioning
            init = how(init, ("in", "out"))

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                scale = self.variable("fixed", "scale", lambda: jnp.full(3, 2.0)).value
                return nn.Dense(3, kernel_init=init)(nn.relu(nn.Dense(4)(x))) * scale

        variables = Net().init(jax.random.key(1), self.x)
        if kind == "frozen":
            variables = flax.core.freeze(variables)
        target = apd_jax.Target.from_flax(Net(), variables, inputs=self.x)
        self.assertEqual(list(target.sites), ["Dense_0/kernel", "Dense_1/kernel"])
        np.testing.assert_array_equal(target(self.x), Net().apply(variables, self.x))
        self.check(target, Net(), target)

    def test_nnx_in_training_mode(self):
        class Net(nnx.Module):
            def __init__(self):
                rngs = nnx.Rngs(0)
                self.linear, self.norm = nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)

            def __call__(self, x):
                return self.norm(self.linear(x))

        model = Net()
        model.eval()
        directory = self.check(apd_jax.Target.from_nnx(model, inputs=self.x), model)
        model.train()
        with self.assertRaisesRegex(apd_jax.UserError, "does not compute.*training mode.*eval"):
            apd_jax.load(directory, model)

    def test_linen_with_a_keyword_that_is_code(self):
        class Net(nn.Module):
            @nn.compact
            def __call__(self, x, activation):
                return activation(nn.Dense(2)(x))

        variables = Net().init(jax.random.key(1), self.x, nn.relu)
        target = apd_jax.Target.from_flax(Net(), variables, inputs=self.x, activation=nn.relu)
        directory = self.check(target, target)
        with self.assertRaisesRegex(apd_jax.UserError, "activation was a .*, which is not saved"):
            apd_jax.load(directory, Net())

    def test_nnx_with_batch_statistics(self):
        model = _NnxStatistics(1)
        before = jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat))
        target = apd_jax.Target.from_nnx(model, inputs=self.x)
        self.check(target, _NnxStatistics(2), apd_jax.Target.from_nnx(_NnxStatistics(3)))
        after = jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat))
        jax.tree.map(np.testing.assert_array_equal, after, before)

    def test_equinox_with_an_array_that_is_no_parameter(self):
        one, other = (_Table(c, jax.random.key(c[0])) for c in ([1, 0], [2, 1]))
        directory = self.check(apd_jax.Target.from_equinox(one, inputs=self.x), other)
        with self.assertRaisesRegex(apd_jax.UserError, "differ from the saved ones"):
            apd_jax.load(directory, _Table([0, 1, 2], jax.random.key(0)))

    @parameterized.parameters("batch", "ema")
    @pytest.mark.slow
    def test_equinox_with_a_state(self, mode):
        (one, state), (other, unlike) = (_with_statistics(mode, seed) for seed in (1, 2))
        target = apd_jax.Target.from_equinox(one, state=state, inputs=self.x)
        whole = _EqxStatistics(mode, jax.random.key(3))  # with the first values of its state
        template = apd_jax.Target.from_equinox(other, state=unlike)
        directory = self.check(target, other, whole, template)
        with self.assertRaisesRegex(apd_jax.UserError, "has 0 indices .* the saved one 2"):
            apd_jax.load(directory, eqx.tree_at(lambda m: m.norm, one, eqx.nn.LayerNorm(4)))

    def test_equinox_with_a_state_that_is_code(self):
        made = [eqx.nn.make_with_state(_Shifted)(shift) for shift in (1.0, 2.0)]
        one, other = (apd_jax.Target.from_equinox(m, state=s, inputs=self.x) for m, s in made)
        directory = self.check(one, other)
        with self.assertRaisesRegex(
            apd_jax.UserError, "a _Shift, which is not saved: .*state=state"
        ):
            apd_jax.load(directory, made[1][0])

    def test_linen_with_keywords_of_all_kinds(self):
        keywords = {
            "axes": (1,),
            "options": {"layers": [{"width": np.int64(4)}], "scale": jnp.arange(4.0)},
            "mask": np.array([True, False, True, True]),
            "factor": np.float32(3),
            "train": np.bool_(False),
        }
        variables = _Keywords().init(jax.random.key(1), self.x, **keywords)
        target = apd_jax.Target.from_flax(_Keywords(), variables, inputs=self.x, **keywords)
        self.check(target, _Keywords())


class KeywordsTest(parameterized.TestCase):
    """Keywords as they are saved, in JSON."""

    def saved(self, value):
        return json.loads(json.dumps(fixed.plain_keywords({"name": value})))

    def back(self, saved):
        return fixed.saved_keywords(saved, "a Target")["name"]

    @parameterized.parameters(
        (np.float32(2.5), 2.5),
        (np.float64(0.1), 0.1),
        (np.int64(3), 3),
        (np.bool_(True), True),
        ((), ()),
        ((1, (2.0, None), [np.int32(3), ("a",)]), (1, (2.0, None), [3, ("a",)])),
        ({}, {}),
        ({"b": {"a": (1, 2)}, 3: [], (0, 1): {"not saved": 1}},) * 2,
    )
    def test_scalars_and_containers(self, value, expected):
        found = self.back(self.saved(value))
        self.assertEqual(repr(found), repr(expected))  # of the same types, in the same order

    def test_arrays(self):
        for array in (
            np.arange(6.0).reshape(2, 3).T,
            np.arange(3, dtype=">f4"),
            np.array(2.0, np.float32),
            np.array([[1 + 2j, np.nan]]),
            np.zeros((0, 2), np.int8),
            np.array([True, False]),
            np.array([1.5, 2.0], ml_dtypes.bfloat16),
            jnp.asarray([1.5, 2.0], jnp.bfloat16),
            jnp.asarray(3),
        ):
            found = self.back(self.saved({"in": (array,)}))["in"][0]
            np.testing.assert_array_equal(found, array)
            self.assertEqual(found.dtype.name, array.dtype.name)
            self.assertIs(type(found), type(array))

    def test_what_is_not_saved(self):
        for value, name in (
            (len, "builtin_function_or_method"),
            (_Shift(1), "_Shift"),
            (jax.random.key(0), "Array of key"),
            (np.array([None]), "ndarray of object"),
            ({"a": [1, (len,)]}, "dict with a list with a tuple with a builtin"),
        ):
            with self.assertRaisesRegex(apd_jax.UserError, f"name was a .*{name}.*not saved"):
                self.back(self.saved(value))

    def test_keywords_that_were_saved_formerly(self):
        for value in (None, True, 2, 0.5, "text", [], [1, [2.5, None], "a"]):
            self.assertEqual(self.back({"name": value}), value)
        with self.assertRaisesRegex(apd_jax.UserError, "name was a tuple, which is not saved"):
            self.back({"name": {"not saved": "tuple"}})


if __name__ == "__main__":
    absltest.main()
