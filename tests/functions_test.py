"""The directory of a decomposition knows its functions again, which have no content to compare."""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax import config_fields
from apd_jax.data import as_source
from apd_jax.decomposition import directory, function_claims, function_identity
from apd_jax.runtime.workdir import Workdir, WorkdirError, WorkdirMismatch

X = np.asarray(networks.normal(5, 32, 3))


def sample(key, batch_size):
    return jax.random.normal(key, (batch_size, 3))


def first(outputs):
    return outputs[:, :1]


def absolute(outputs, target_outputs):
    return jnp.abs(outputs - target_outputs)


MINE = {"apply_fn": networks.mlp_apply, "data": sample, "metric": first, "loss": absolute}


class ClaimTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.kept = self.path / function_claims.FILE

    def claim(self, **changes):
        mine = MINE | changes
        target = apd_jax.Target(mine["apply_fn"], networks.mlp().params)
        objective = apd_jax.Objective(metric=mine["metric"], minimality_loss=mine["loss"])
        source = as_source(mine["data"], 0)
        with Workdir(self.path) as workdir:
            workdir.claim({"a": 1})
            target.at(source.examples(0, 3))
            function_claims.claim(workdir, target, objective, source, seed=0, batch_size=8)

    @parameterized.named_parameters(
        (
            "network",
            {"apply_fn": lambda p, x: jnp.sin(networks.mlp_apply(p, x))},
            "network: ",
        ),
        (
            "outputs",
            {"apply_fn": lambda p, x: networks.mlp_apply(p, x)[:, :1]},
            r"network: .*float32\[8, 1\]",
        ),
        (
            "large_outputs",
            {"apply_fn": lambda p, x: jnp.repeat(networks.mlp_apply(p, x), 2**18, axis=1)},
            r"network: .*float32\[8, 524288\]",
        ),
        (
            "sampler",
            {"data": lambda k, n: jax.random.uniform(k, (n, 3))},
            "sampling function",
        ),
        ("metric", {"metric": lambda y: y[:, 1:]}, "function metric=: "),
        ("loss", {"loss": lambda y, t: jnp.square(y - t)}, "function minimality_loss=: "),
    )
    def test_another_function_is_refused(self, changes, message):
        self.claim()
        before = self.kept.read_bytes()
        with self.assertRaisesRegex(WorkdirMismatch, f"another {message}.*Take another workdir"):
            self.claim(**changes)
        self.assertEqual(self.kept.read_bytes(), before)

    @parameterized.product(
        kind=("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "bfloat16"), where=("inputs", "bias")
    )
    @pytest.mark.slow
    def test_another_network_with_a_cast_to_few_bits_is_refused(self, kind, where):
        """One such cast is in both networks."""

        def cast(array):
            return array.astype(kind).astype(jnp.float32)

        def network(params, x):
            second = params["second"] | {"b": cast(params["second"]["b"])}
            params = params | {"second": second} if where == "bias" else params
            return networks.mlp_apply(params, cast(x) if where == "inputs" else x)

        self.claim(apply_fn=network)
        self.claim(apply_fn=lambda p, x: network(p, x) * (1 + 1e-3))
        for other in (lambda p, x: network(p, -x), lambda p, x: 1.3 * network(p, x)):
            with self.assertRaisesRegex(WorkdirMismatch, "another network"):
                self.claim(apply_fn=other)
        settings = apd_jax.Settings(apd_jax.Objective(topk=1.0), 3, steps=1, batch_size=8, rank=1)
        target = apd_jax.Target(network, networks.mlp().params, inputs=X)
        components = networks.components(target, 3, 1)
        apd_jax.Decomposition(target, components, settings, [], X[:3]).save(self.path / "saved")
        apd_jax.load(self.path / "saved", network)
        with self.assertRaisesRegex(apd_jax.UserError, "does not compute what the decomposed"):
            apd_jax.load(self.path / "saved", lambda p, x: network(p, -x))

    def test_the_same_written_anew_is_accepted(self):
        self.claim()
        self.claim(
            apply_fn=lambda p, x: networks.mlp_apply(p, x) * (1 + 1e-6),
            data=lambda k, n: sample(k, n),
            metric=lambda y: y[:, 0],
            loss=lambda y, t: jnp.maximum(y - t, t - y),
        )

    def test_data_of_another_kind(self):
        self.claim()
        with self.assertRaisesRegex(WorkdirMismatch, "other data: .*float32.* are .*int32"):
            self.claim(
                apply_fn=lambda p, x: networks.mlp_apply(p, x.astype(jnp.float32)),
                data=lambda k, n: jax.random.randint(k, (n, 3), 0, 9),
            )

    def test_lists_are_compared_and_loaders_may_shuffle_anew(self):
        one, two = [X[:8], X[8:16]], [X[8:16], X[:8]]
        self.claim(data=one)
        self.claim(data=one)
        self.claim(data=(batch for batch in two))
        with self.assertRaisesRegex(WorkdirMismatch, "other batches"):
            self.claim(data=two)

    def test_a_directory_from_before(self):
        self.claim()
        self.kept.unlink()
        (self.path / "checkpoints").mkdir()
        with self.assertLogs("absl", "WARNING") as logs:
            self.claim()
        self.assertIn("assumed to be the ones that it was started with", logs.output[0])
        self.assertTrue(self.kept.exists())

    def test_a_file_that_cant_be_read(self):
        self.kept.write_bytes(b"nothing")
        (self.path / "config.json").write_text('{"a": 1}')
        with self.assertRaisesRegex(WorkdirError, "can't be read .* delete it"):
            self.claim()

    def test_large_outputs_are_kept_of_few_examples(self):
        self.claim(apply_fn=lambda p, x: jnp.repeat(networks.mlp_apply(p, x), 2**18, axis=1))
        self.assertLess(self.kept.stat().st_size, 8 * 2**20)

    def test_inputs_of_half_precision_and_whole_numbers(self):
        def network(params, x):
            return networks.mlp_apply(params, x["x"].astype(jnp.float32)) + x["n"][:, None]

        def draw(key, n):
            x = sample(key, n)
            return {"x": x.astype(jnp.bfloat16), "n": jnp.arange(n), "on": x[:, 0] > 0}

        for _ in range(2):
            self.claim(apply_fn=network, data=draw)


class _Scaled:
    def __call__(self, *inputs):
        return self.function(*inputs) * self.scale


class _Above:
    def __call__(self, batch):
        return batch[:, 0] > self.least


SETTING = [("function", Callable), ("scale", float, 1.0)]
# Python lets no object of the first kind be hashed.
Scaled, FrozenScaled = (
    dataclasses.make_dataclass("Scaled", SETTING, bases=(_Scaled,), frozen=frozen)
    for frozen in (False, True)
)
Above, FrozenAbove = (
    dataclasses.make_dataclass("Above", [("least", float)], bases=(_Above,), frozen=frozen)
    for frozen in (False, True)
)


class ObjectsTest(parameterized.TestCase):
    """Callable data classes are as good as functions, and no records of settings."""

    def decompose(self, apply_fn, workdir=None, **functions):
        target = apd_jax.Target(apply_fn, networks.mlp().params, inputs=X)
        options = {"num_components": 3, "topk": 1.0, "rank": 1, "steps": 2, "batch_size": 8}
        options |= {"refine": {"every": 0}, "relative_losses": False}
        return apd_jax.decompose(target, X, workdir=workdir, **options, **functions)

    @parameterized.parameters((Scaled, Above), (FrozenScaled, FrozenAbove))
    def test_they_are_no_records(self, scaled, above):
        chosen = {"metric": scaled(first), "minimality_loss": scaled(absolute), "valid": above(0.5)}
        objective = apd_jax.Objective(**chosen)
        found = config_fields.plain(config_fields.to_mapping(objective))
        self.assertEqual(found["metric"], "function Scaled")
        self.assertEqual(found["minimality_loss"], "function Scaled")
        self.assertEqual(found["valid"], "function Above")
        mapping = config_fields.to_mapping(objective)
        self.assertEqual(config_fields.from_mapping(apd_jax.Objective(), mapping), objective)

    def test_one_that_makes_a_function_of_its_own(self):
        @dataclasses.dataclass(frozen=True)
        class Power:
            of: float
            function: Callable = dataclasses.field(init=False)

            def __post_init__(self):
                object.__setattr__(self, "function", lambda y: y**self.of)

            def __call__(self, outputs):
                return self.function(outputs)

        found = function_identity.given(networks.mlp(), X, metric=Power(2.0))["metric"]
        np.testing.assert_allclose(found, networks.mlp()(X) ** 2, rtol=1e-5)

    @pytest.mark.slow
    def test_a_decomposition(self):
        objects = {
            "metric": FrozenScaled(first),
            "minimality_loss": FrozenScaled(absolute),
            "valid": FrozenAbove(-0.5),
        }
        plain = {"metric": first, "minimality_loss": absolute, "valid": Above(-0.5).__call__}
        self.enterContext(mock.patch.object(directory, "_write_report"))  # takes seconds to compile
        expected = self.decompose(networks.mlp_apply, **plain)
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(2):  # the second time from its directory
                found = self.decompose(FrozenScaled(networks.mlp_apply), folder, **objects)
                jax.tree.map(np.testing.assert_array_equal, found.components, expected.components)
                np.testing.assert_array_equal(found.mask(X), expected.mask(X))
            config = json.loads((pathlib.Path(folder) / "config.json").read_text())
            found.save(saved := pathlib.Path(folder) / "saved")
            apd_jax.load(saved, FrozenScaled(networks.mlp_apply), **objects)
        self.assertEqual((config["metric"], config["valid"]), ("function Scaled", "function Above"))

    def test_a_network(self):
        network = Scaled(networks.mlp_apply)
        target = apd_jax.Target(network, networks.mlp().params, inputs=X)
        again = apd_jax.Target(network, networks.mlp().params, inputs=X)
        self.assertIs(target.apply_fn, again.apply_fn)
        found = jax.jit(lambda target, x: target(x))(target, X)
        np.testing.assert_allclose(found, networks.mlp()(X), rtol=1e-6)

    def test_an_objective(self):
        metric, loss, valid = Scaled(first), Scaled(absolute), Above(0.0)
        made = [
            apd_jax.Objective(metric=metric, minimality_loss=loss, valid=valid) for _ in range(2)
        ]
        self.assertEqual(*made)
        self.assertEqual(*map(hash, made))
        self.assertNotEqual(made[0], dataclasses.replace(made[0], metric=Scaled(first)))
        np.testing.assert_array_equal(made[0].counted(X), X[:, 0] > 0)


class DifferenceTest(parameterized.TestCase):
    @parameterized.parameters(
        ([1.0, 100.0], [1.05, 100.0], True),
        ([1.0, 100.0], [1.0, 101.0], False),
        ([np.nan, -np.inf], [np.nan, -np.inf], True),
        ([np.nan, 1.0], [1.0, 1.0], False),
        ([50000, 1], [50001, 1], False),
        ([1.0, 2.0], [1, 2], False),
        ([True], [False], False),
        ([], [], True),
    )
    def test_against_what_was_kept(self, found, expected, same):
        said = function_identity.difference(np.array(found), np.array(expected), 1e-3)
        self.assertEqual(said == "", same, said)


if __name__ == "__main__":
    absltest.main()
