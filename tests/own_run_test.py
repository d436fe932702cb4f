"""Decomposing from a user's chair: directories, stops, functions of one's own, plain refusals."""

import json
import os
import pathlib
import re
import signal
import tempfile
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.decomposition import directory
from apd_jax.objective.objective import Objective
from apd_jax.runtime import loop
from apd_jax.runtime.workdir import WorkdirError
from apd_jax.training.config import Settings
from apd_jax.training.trainer import Trainer

X = np.asarray(networks.normal(5, 32, 3))
TINY = {
    "num_components": 3,
    "topk": 1.0,
    "rank": 1,
    "steps": 6,
    "batch_size": 8,
    "chunk_steps": 2,
}


class StopAt(loop.Observer):
    """Presses Ctrl-C at a step."""

    def __init__(self, at):
        self._at = at

    def on_metrics(self, step, metrics):
        if step == self._at:
            os.kill(os.getpid(), signal.SIGINT)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.components, b.components)


class DirectoryTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "mine"

    def decompose(self, **options):
        return apd_jax.decompose(networks.mlp(), X, **(TINY | {"workdir": self.workdir} | options))

    @pytest.mark.slow
    def test_stop_go_on_and_call_again(self):
        with self.assertLogs("absl", "WARNING") as logs:
            part = self.decompose(observer=StopAt(2), checkpoint_every=100)
        self.assertRegex(logs.output[-1], r"Stopped at step \d of 6; call again to resume")
        self.assertLess(part.history[-1]["step"], 6)
        self.assertFalse((self.workdir / "report.html").exists())
        whole = self.decompose(checkpoint_every=100)
        same(whole, self.decompose(workdir=None))
        self.assertEqual([row["step"] for row in whole.history], [2, 4, 6])
        rows = [json.loads(row) for row in (self.workdir / "metrics.jsonl").open()]
        self.assertEqual([row["step"] for row in rows], [2, 4, 6])

        report = (self.workdir / "report.html").read_text()
        words = ("Summary", "first/w", "Training curves", "Singular values", "neurons")
        for word in (*words, "The training may have seen these examples"):
            self.assertIn(word, report)
        names = {path.stem for path in (self.workdir / "figures").iterdir()}
        self.assertContainsSubset({"activity", "error_curves", "attributions"}, names)
        same(apd_jax.load(self.workdir / "components", networks.mlp_apply), whole)
        again = self.decompose(checkpoint_every=100)
        same(again, whole)
        self.assertEqual(again.history, whole.history)

    @pytest.mark.slow
    def test_long_sequences_make_a_report_of_fewer_examples(self):
        """As many positions are looked at, whatever their number in an example."""
        target = apd_jax.Target(lambda w, x: jnp.tanh(x @ w), networks.normal(0, 1, 1))
        for length, count in ((256, 32), (2048, 8)):
            options = TINY | {"steps": 1, "per_position": True}
            options["workdir"] = self.workdir / str(length)
            with mock.patch.object(directory, "publish") as publish:
                apd_jax.decompose(target, np.ones((64, length, 1), "f4"), **options)
            examples = publish.call_args.args[2]()
            self.assertEqual(examples.shape, (count, length, 1))

    @pytest.mark.slow
    def test_a_directory_of_another_decomposition(self):
        with self.assertLogs("absl", "WARNING"):
            self.decompose(observer=StopAt(2))
        for options in ({"topk": 2.0}, {"seed": 1}, {"init": networks.components(networks.mlp())}):
            options = {"rank": None} | options if "init" in options else options
            with self.assertRaisesRegex(WorkdirError, "another config"):
                self.decompose(**options)
        with self.assertRaisesRegex(WorkdirError, "data: "):
            apd_jax.decompose(networks.mlp(), X + 1, **TINY, workdir=self.workdir)
        for factor, message in ((2.0, "another network"), (1 + 1e-6, "another target")):
            with self.assertRaisesRegex(apd_jax.UserError, message):
                target = networks.mlp()
                target = target.with_weights({"first/w": factor * target.weights["first/w"]})
                apd_jax.decompose(target, X, **TINY, workdir=self.workdir)
        with self.assertRaisesRegex(apd_jax.UserError, "another network"):
            apd_jax.decompose(with_output(jnp.sin), X, **TINY, workdir=self.workdir)

    def test_no_directory(self):
        with self.assertRaisesRegex(apd_jax.UserError, "must be a str or a pathlib.Path, got 5"):
            self.decompose(workdir=5)


class MemoryTest(parameterized.TestCase):
    @pytest.mark.slow
    def test_a_stop_hands_back_what_is_done(self):
        with self.assertLogs("absl", "WARNING") as logs:
            part = apd_jax.decompose(networks.mlp(), X, **TINY, observer=StopAt(2))
        done = int(part.history[-1]["step"])
        self.assertRegex(logs.output[-1], rf"Stopped at step {done} of 6\.$")
        self.assertIn(f"{done} of 6 steps", repr(part))
        self.assertEqual(part(X[:8]).shape, (8, 2))

    @pytest.mark.slow
    def test_init_goes_on_from_components(self):
        start = networks.components(networks.mlp(), num_components=3, rank=2)
        options = TINY | {"rank": None, "steps": 1, "chunk_steps": 1, "learning_rate": 1e-7}
        found = apd_jax.decompose(networks.mlp(), X, **options, init=start)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found.components, start
        )

    def test_init_keeps_its_products_at_unit_norm(self):
        start = networks.components(networks.mlp(), num_components=3, rank=2)
        zeros = {site: f._replace(reads=f.reads.at[:, 1].set(0)) for site, f in start.items()}
        targets = loop.stack([networks.mlp()])
        settings = Settings(Objective(), num_components=3, rank=2, steps=1, unit_norm=True)
        for init in (start, zeros):
            state = Trainer(
                settings, targets, networks.normal, jnp.zeros(1, jnp.uint32), init=init
            ).init_state()
            for site, factors in loop.pick(state.components, 0).items():
                np.testing.assert_allclose(
                    factors.matrices(), init[site].matrices(), rtol=1e-5, atol=1e-6
                )
                lengths = np.linalg.norm(factors.U, axis=1)
                np.testing.assert_allclose(lengths, np.ones_like(lengths), rtol=1e-5)

    @pytest.mark.slow
    def test_init_may_be_a_decomposition(self):
        first = apd_jax.decompose(networks.mlp(), X, **TINY)
        options = TINY | {"steps": 1, "chunk_steps": 1}
        one, two = (
            apd_jax.decompose(networks.mlp(), X, **options, init=init)
            for init in (first, first.components)
        )
        same(one, two)

    def test_init_that_is_neither(self):
        with self.assertRaisesRegex(apd_jax.UserError, "components or a Decomposition, got 5"):
            apd_jax.decompose(networks.mlp(), X, **TINY, init=5)

    @parameterized.parameters(
        ({"num_components": 4, "rank": None}, "init has 3 components, num_components is 4"),
        ({"rank": 1}, "init has rank 2 at 'first/w', rank is 1"),
    )
    def test_init_that_does_not_fit(self, options, message):
        start = networks.components(networks.mlp(), num_components=3, rank=2)
        with self.assertRaisesRegex(apd_jax.UserError, message):
            apd_jax.decompose(networks.mlp(), X, **(TINY | options), init=start)


class FunctionsTest(parameterized.TestCase):
    @pytest.mark.slow
    def test_metric_and_minimality_loss_of_ones_own(self):
        def first(outputs):
            return outputs[:, :1]

        def absolute(outputs, target_outputs):
            return jnp.abs(outputs - target_outputs)

        found = apd_jax.decompose(networks.mlp(), X, **TINY, metric=first, minimality_loss=absolute)
        target = apd_jax.Target(lambda p, x: networks.mlp_apply(p, x)[:, :1], networks.mlp().params)
        scores = apd_jax.gradient_attributions(target, found.components, X[:8])
        np.testing.assert_allclose(found.attributions(X[:8]), scores, rtol=1e-4)
        error = jnp.mean(jnp.abs(found(X[:8]) - found.target(X[:8])))
        row = found.summary(X[:8], baselines=()).row("active components")
        np.testing.assert_allclose(row.error, error, rtol=1e-4)

    @pytest.mark.slow
    def test_coefficients_as_a_mapping(self):
        found = apd_jax.decompose(networks.mlp(), X, **TINY, coefficients={"minimality": 2.0})
        weights = found.settings.objective.coefficients
        self.assertEqual((weights.minimality, weights.faithfulness), (2.0, 1.0))

    @pytest.mark.slow
    def test_positions_of_a_language_model(self):
        """Fisher scores per position by the sketch, KL on logits [B, T, V]: it learns."""

        def network(params, tokens):
            h = params["embed"][tokens]
            before = jnp.pad(h, ((0, 0), (1, 0), (0, 0)))[:, :-1]
            return jnp.tanh(h @ params["here"] + before @ params["back"]) @ params["out"]

        shapes = {"embed": (7, 5), "here": (5, 5), "back": (5, 5), "out": (5, 7)}
        params = {name: networks.normal(i, *s) for i, (name, s) in enumerate(shapes.items())}
        tokens = np.random.default_rng(0).integers(0, 7, (64, 6))
        found = apd_jax.decompose(
            apd_jax.Target(network, params),
            tokens,
            num_components=12,
            topk=6,
            steps=150,
            batch_size=16,
            learning_rate=0.02,
            chunk_steps=10,
            per_position=True,
            attribution_mode="sketch",
            num_probes=4,
            metric="fisher",
            minimality_loss="kl",
        )
        self.assertEqual(found.mask(tokens[:4]).shape, (4, 6, 12))
        self.assertAlmostEqual(float(found.mask(tokens[:16]).sum()), 6 * 16 * 6)
        losses = [row["loss/total"] for row in found.history]
        self.assertLess(losses[-1], 0.9 * losses[0])
        summary = found.summary(tokens, baselines=())
        self.assertLess(summary.row("active components").error, summary.row("no components").error)


class Mixed(nn.Module):
    """Computes in bfloat16 with float32 parameters, and takes a keyword."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4, dtype=jnp.bfloat16)(x)
        x = nn.BatchNorm(use_running_average=not train, dtype=jnp.bfloat16)(x)
        return nn.Dense(2, dtype=jnp.float32)(nn.Dropout(0.5, deterministic=not train)(nn.relu(x)))


class NetworksTest(parameterized.TestCase):
    @pytest.mark.slow
    def test_half_precision_keywords_and_statistics(self):
        variables = Mixed().init(jax.random.key(0), X, train=False)
        target = apd_jax.Target.from_flax(Mixed(), variables, train=False)
        found = apd_jax.decompose(target, X, **TINY)
        self.assertEqual(list(found.components), ["Dense_0/kernel", "Dense_1/kernel"])
        self.assertEqual(found.components["Dense_0/kernel"].U.dtype, jnp.float32)
        self.assertTrue(bool(jnp.isfinite(found(X[:4])).all()))

    @parameterized.parameters("bfloat16", "float16")
    def test_weights_of_half_precision_are_refused(self, dtype):
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), networks.mlp().params)
        target = apd_jax.Target(networks.mlp_apply, params)
        with self.assertRaisesRegex(apd_jax.UserError, f"weights of {dtype}.*in float32"):
            apd_jax.decompose(target, X, **TINY)

    @parameterized.parameters(
        ("bfloat16", "forward"),
        ("float16", "reverse"),
        ("bfloat16", "literal"),
        ("float16", "sketch"),
    )
    @pytest.mark.slow
    def test_inputs_and_outputs_of_half_precision(self, dtype, mode):
        def network(params, x):
            low = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
            return networks.mlp_apply(low, x)

        target = apd_jax.Target(network, networks.mlp().params)
        options = TINY | {"steps": 2, "attribution_mode": mode}
        found = apd_jax.decompose(target, X.astype(dtype), **options)
        self.assertTrue(np.isfinite(found.history[-1]["loss/total"]))

    @pytest.mark.slow
    def test_a_bare_dense(self):
        module = nn.Dense(2)
        target = apd_jax.Target.from_flax(module, module.init(jax.random.key(0), X))
        self.assertEqual(list(apd_jax.decompose(target, X, **TINY).components), ["kernel"])

    @pytest.mark.slow
    def test_tuples_of_outputs(self):
        def network(params, x):
            h = networks.mlp_apply(params, x)
            return h, {"sum": h.sum(axis=1)}

        found = apd_jax.decompose(apd_jax.Target(network, networks.mlp().params), X, **TINY)
        first, rest = found(X[:4])
        self.assertEqual((first.shape, rest["sum"].shape), ((4, 2), (4,)))
        self.assertGreater(found.summary(X).row("no components").error, 0)


def with_output(change):
    return apd_jax.Target(lambda p, x: change(networks.mlp_apply(p, x)), networks.mlp().params)


class RefusedTest(parameterized.TestCase):
    """Before any training, in words that say what to do."""

    @parameterized.parameters(
        ({"seed": -1}, r"seed must be a whole number in \[0, 2\*\*32\), got -1"),
        ({"seed": 2**32}, "got 4294967296"),
        ({"seed": 0.5}, "got 0.5"),
        ({"num_components": 2.5}, "num_components must be a whole number.*2.5"),
        ({"num_components": "5"}, "num_components must be a whole number.*got '5'"),
        ({"num_probes": 2.5}, "num_probes must be a whole number.*got 2.5"),
        ({"batch_size": 8.0}, "batch_size must be a whole number"),
        ({"steps": "6"}, "steps must be a whole number"),
        ({"chunk_steps": 2.0}, "chunk_steps must be a whole number"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
        ({"learningrate": 1.0}, "no option 'learningrate'; did you mean 'learning_rate'"),
        ({"coefficients": {"minimalty": 1.0}}, "did you mean 'minimality'"),
        ({"coefficients": [1.0, 2.0]}, "must be a Coefficients or a mapping of its fields"),
        ({"refine": None}, "mapping of its fields, such as {'every': 0.*}, got None"),
        ({"coefficients": {"minimality": "1"}}, "minimality must be a finite number, got '1'"),
        ({"metric": lambda a, b: a}, r"metric must be a function of \(outputs\): missing.*'b'"),
        (
            {"minimality_loss": lambda a: a},
            r"minimality_loss must be a function of \(outputs, target_outputs\): too many",
        ),
        ({"metric": "l2"}, "metric must be 'rms', 'fisher', or a function"),
        ({"minimality_loss": "l1"}, "minimality_loss must be one of"),
    )
    def test_options(self, options, message):
        with self.assertRaisesRegex(apd_jax.UserError, message):
            apd_jax.decompose(networks.mlp(), X, **(TINY | options))

    @parameterized.named_parameters(
        ("width", lambda: networks.mlp(), X[:, :2], r"fails on inputs float32\[3, 2\]"),
        ("whole", lambda: with_output(lambda y: y.argmax(1)), X, "real numbers, got .*int32"),
        (
            "nan",
            lambda: networks.mlp().with_weights({"first/w": jnp.full((3, 5), jnp.nan)}),
            X,
            "parameter 'first/w' holds NaN",
        ),
        ("no_array", lambda: with_output(lambda y: "text"), X, "the network fails on inputs"),
        ("batch_mean", lambda: with_output(lambda y: y - y.mean(0)), X, "other examples"),
    )
    def test_networks(self, make, x, message):
        with self.assertRaisesRegex(apd_jax.UserError, message):
            apd_jax.decompose(make(), x, **TINY)

    @parameterized.parameters((networks.mlp_apply,), (nn.Dense(2),), ({"w": 1.0},))
    def test_no_target(self, network):
        with self.assertRaisesRegex(apd_jax.UserError, r"must be a Target, got a .*from_flax"):
            apd_jax.decompose(network, X, **TINY)

    def test_exact_selection_of_several_arrays(self):
        def network(params, x):
            return networks.mlp_apply(params, x["x"]) + x["shift"]

        target = apd_jax.Target(network, networks.mlp().params)
        data = {"x": X, "shift": X[:, :2]}
        with self.assertRaisesRegex(apd_jax.UserError, "'exact' counts .* one array .* got a dict"):
            apd_jax.decompose(target, data, **TINY, selection="exact")

    def test_wrong_width_for_a_module(self):
        module = nn.Dense(2)
        target = apd_jax.Target.from_flax(module, module.init(jax.random.key(0), X))
        with self.assertRaisesRegex(apd_jax.UserError, "fails on inputs"):
            apd_jax.decompose(target, X[:, :2], **TINY)

    def test_components_of_other_widths(self):
        target = networks.mlp()
        other = networks.components(networks.mlp(hidden=4))
        for function in (apd_jax.masked_apply, apd_jax.composed_apply):
            mask = () if function is apd_jax.composed_apply else (jnp.ones((32, 3), bool),)
            with self.assertRaisesRegex(apd_jax.UserError, r"'first/w' has a matrix \(3, 5\)"):
                function(target, other, X, *mask)

    def test_weights_that_are_nan_give_scores_that_are_nan(self):
        target = networks.mlp().with_weights({"first/w": jnp.full((3, 5), jnp.nan)})
        scores = apd_jax.gradient_attributions(target, networks.components(target), X[:4])
        self.assertTrue(bool(jnp.isnan(scores).all()))


class ReadmeTest(absltest.TestCase):
    @pytest.mark.slow
    def test_the_lines_for_ones_own_network_run_as_they_stand(self):
        text = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
        section = text.partition("## Decompose your own network")[2]
        code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
        names = {}
        before = os.getcwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                exec(code, names)
                loaded = apd_jax.load("my_decomposition", names["module"])
            finally:
                os.chdir(before)
        x = names["x"][:64]
        np.testing.assert_array_equal(loaded(x), names["found"](x))
        self.assertEqual(names["found"].attributions(x).shape, (64, 20))
        last = names["found"].history[-1]["loss/total"]
        self.assertLess(last, names["found"].history[0]["loss/total"])


if __name__ == "__main__":
    absltest.main()
