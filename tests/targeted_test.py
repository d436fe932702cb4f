"""Targeted decompositions: components explain some data, and a remainder everything else."""

import functools
import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.data import Beside, as_source
from apd_jax.decomposition import directory, job
from apd_jax.errors import UserError
from apd_jax.evaluation import without
from apd_jax.objective.coefficients import Coefficients
from apd_jax.objective.objective import Objective

A, B = jnp.array([[1.0, 0.5], [-0.5, 1.0]]), jnp.array([[0.8, -0.6], [0.6, 0.8]])


def two_blocks(params, x):
    """Two blocks that share nothing."""
    return jnp.concatenate([jnp.tanh(x[:, :2] @ params["a"]), jnp.tanh(x[:, 2:] @ params["b"])], 1)


def of_one_block(key, count):
    """Inputs of the first block alone, one of its two inputs at a time."""
    place, size = jax.random.split(key)
    which = jax.nn.one_hot(jax.random.randint(place, (count,), 0, 2), 2)
    values = which * jax.random.uniform(size, (count, 1), minval=-2, maxval=2)
    return jnp.concatenate([values, jnp.zeros((count, 2))], axis=1)


def of_both(key, count):
    """Inputs of both blocks."""
    first, second = jax.random.split(key)
    inputs = of_one_block(first, count)
    return inputs.at[:, 2:].set(jax.random.normal(second, (count, 2)))


class DataTest(absltest.TestCase):
    def test_an_error_names_the_data_that_it_is_about(self):
        batch = np.zeros((4, 3), np.float32)
        for names, data, other in (("other: ", batch, [batch]), ("", [batch], batch)):
            sources = (as_source(iter(d) if isinstance(d, list) else d, 0) for d in (data, other))
            beside = Beside(*sources).with_batch_size(4)
            beside.feed(0, 1)
            with self.assertRaisesRegex(UserError, f"^{names}the data ended after 1 batches"):
                beside.feed(1, 1)


class LossTest(absltest.TestCase):
    def test_literal(self):
        """`d(f(x, Σ s_c P_c + θ* − Σ P_c), f(x, θ*))`, one example after another."""
        target, x = networks.make("mlp")
        components, other = networks.components(target), x[::-1] + 0.3
        rule = Objective(Coefficients(0.0, other=1.0), topk=1, selection="sample")
        terms, _ = jax.jit(rule.terms)(target, components, x, other=other)
        self.assertEqual(list(terms), ["other"])
        scores = jax.jit(rule.attribute)(target, components, other).scores
        mask = np.asarray(rule.select(scores, other).mask)
        parts, total = jax.tree.map(np.asarray, networks.matrices(components)), 0.0
        own, output = jax.tree.map(np.asarray, target.weights), jax.jit(networks.output)
        for row, active in zip(np.asarray(other)[:, None], mask, strict=True):
            weights = {site: own[site] - part[~active].sum(axis=0) for site, part in parts.items()}
            error = output(target, weights, row) - output(target, own, row)
            total += np.mean(np.square(error)) / len(other)
        np.testing.assert_allclose(terms["other"], total, rtol=1e-4)
        self.assertEmpty(jax.eval_shape(rule.terms, target, components, x)[0])


class DecomposeTest(parameterized.TestCase):
    @pytest.mark.slow
    def test_what_counts_of_both_kinds_of_data(self):
        target, x = networks.make("tms")
        x = np.asarray(x)
        found = apd_jax.decompose(
            target,
            x,
            other=x + 1,
            valid=lambda batch: batch[:, 0] > -1,
            num_components=3,
            topk=1,
            steps=2,
            batch_size=4,
            refine={"every": 0},
        )
        self.assertEqual(found.settings.objective.coefficients.other, 1.0)

    @pytest.mark.slow
    def test_two_blocks_of_which_the_data_use_one(self):
        """Components are the mechanisms of the one, and the remainder is the other."""
        target = apd_jax.Target(two_blocks, {"a": A, "b": B}, inputs=jnp.zeros((2, 4)))
        found = apd_jax.decompose(
            target,
            of_one_block,
            other=of_both,
            num_components=2,
            rank=1,
            topk=1,
            steps=600,
            batch_size=64,
        )
        held = {site: factors.sum() for site, factors in found.components.items()}
        self.assertLess(jnp.sum((held["a"] - A) ** 2), 0.1 * jnp.sum(A**2))
        self.assertLess(jnp.sum(held["b"] ** 2), 1e-8 * jnp.sum(B**2))
        x = np.asarray(of_one_block(jax.random.key(9), 128))
        summary = found.summary(x, baselines=())
        self.assertLess(summary.active.error, 0.05 * summary.nothing.error)
        active, alone = summary.other
        self.assertLess(active.error, 1e-5)
        self.assertGreater(alone.error, 0.01)  # the other data use the first block as well
        self.assertIn("On the other data the output error is", repr(summary))

        # Components are taken out of a network that keeps its remainder.
        changed = found.edited({1: 0.0})
        matrices = found.components["a"].matrices()
        np.testing.assert_allclose(changed["a"], A - matrices[1], atol=1e-5)
        np.testing.assert_allclose(changed["b"], B, atol=1e-5)
        with tempfile.TemporaryDirectory() as place:
            evidence = found.evidence(x, adversary_steps=1, draws=1, baselines=())
            found.report(f"{place}/report.html", x, evidence=evidence)
            found.save(f"{place}/saved")
            again = apd_jax.load(f"{place}/saved", target)
        self.assertIn("error on the other data is unknown", repr(again.summary(x, baselines=())))
        again = again.summary(x, baselines=(), other=found.other)
        self.assertAlmostEqual(again.other[1].error, alone.error, places=5)

    def test_examples_that_the_training_never_sees(self):
        rows = np.zeros((8, 4), np.float32)
        for data, fresh in ((of_both, True), (rows, False)):
            for other in (of_both, rows):
                beside = Beside(as_source(data), as_source(other))
                self.assertEqual(beside.fresh, fresh)

    @pytest.mark.slow
    def test_without_a_component_the_remainder_stays(self):
        """`ablate` and the report's "without it" are what `edited` gives."""
        target, x = networks.make("tms")
        components = networks.components(target)
        rule = Objective(Coefficients(0.0, minimality=1.0, other=1.0), topk=1, selection="sample")
        settings = apd_jax.Settings(rule, num_components=3, batch_size=4)
        found = apd_jax.Decomposition(target, components, settings)
        edited = target.apply_fn(found.edited({1: 0.0}), x)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
        close(found.ablate(x, 1), edited)
        whole = np.asarray(target(x))  # all components and the remainder
        places, size = np.arange(len(x)), np.sum(np.square(whole), axis=1)
        change = np.sum(np.square(edited - whole), axis=1) / np.where(size > 0, size, np.nan)
        close(without.changes(found, x, np.full(len(x), 1), places), change)
        self.assertGreater(np.nanmax(change), 0.01)
        self.assertTrue(np.isnan(change).any())  # an example whose output is zero
        notes = found.evidence(x, adversary_steps=1, draws=1, baselines=()).notes
        self.assertIn("measured without the remainder", " ".join(notes))

    @parameterized.parameters(
        ({"other": None, "coefficients": {"other": 1.0}}, "needs other= and a coefficient"),
        ({"coefficients": {"other": 0.0}}, "needs other= and a coefficient"),
        ({"restarts": 2}, "other= needs restarts=1, got 2"),
        ({"accumulate": 2}, "accumulate=2"),
        ({"other": np.zeros((4, 3), np.float32)}, "other: "),
    )
    def test_refused(self, changes, message):
        self.check_refused(changes, message)

    @parameterized.parameters(
        (np.nan, {}, "other: the network returns NaN or infinity"),
        (np.inf, {}, "other: the network returns NaN or infinity"),
        (1e30, {}, "other: the network returns outputs up to .*beyond float32"),
        (np.nan, {"minimality_loss": "kl"}, "other: the network returns NaN or infinity"),
    )
    @pytest.mark.slow
    def test_outputs_on_other_data_that_no_loss_can_compare(self, value, changes, message):
        """The network divides by what is 0 in none of the data."""
        x = np.asarray(networks.make("tms")[1])
        other = np.concatenate([x[:, :3], np.zeros((len(x), 1))], axis=1).astype("f4")

        def network(params, x):
            bad = jnp.where(x[:, 3:] == 0, value, 1.0)
            return (x @ params["linear1"]["kernel"]) * bad

        params = networks.make("tms")[0].params
        target = apd_jax.Target(network, params)
        data = np.where(x == 0, 1, x)
        changes = {"other": other} | changes
        self.check_refused(changes, message, target, data)
        # Examples that don't count may have such outputs.
        changes |= {"valid": lambda batch: batch[:, 3] != 0, "other": np.stack([other, data], 1)}
        changes["other"] = changes["other"].reshape(-1, 4)
        with mock.patch.object(job.Job, "decompose"):
            self.decompose(changes, target, data)

    def decompose(self, changes, target, x):
        options = {"other": np.asarray(x), "refine": {"every": 0}} | changes
        return apd_jax.decompose(
            target, np.asarray(x), num_components=3, topk=1, steps=2, batch_size=4, **options
        )

    def check_refused(self, changes, message, target=None, x=None):
        made, inputs = networks.make("tms")
        with (
            mock.patch.object(job.Job, "decompose", side_effect=AssertionError("it trains")),
            self.assertRaisesRegex(UserError, message),
        ):
            self.decompose(changes, target or made, inputs if x is None else x)


class Shards:
    """Batches that can be iterated again, of which the 14th can't be read."""

    def __iter__(self):
        for step in range(13):
            yield np.random.default_rng(step).standard_normal((8, 4)).astype("f4")
        raise OSError("the shard is gone")


class OtherDataFailTest(absltest.TestCase):
    """Of the other data more is read after the training than its steps used."""

    def decompose(self, **options):
        target, x = networks.make("tms")
        options = {"refine": {"every": 0}, "chunk_steps": 5} | options
        return apd_jax.decompose(
            target, np.asarray(x), other=Shards(), num_components=3, topk=1, rank=1, **options
        )

    def check_warned(self, logs):
        (warning,) = [text for text in logs.output if "other data could not" in text]
        self.assertIn("(OSError: the shard is gone)", warning)
        self.assertIn("call found.summary(x, other=...)", warning)

    @pytest.mark.slow
    def test_a_finished_training_is_handed_back_and_saved(self):
        place = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "run"
        for _ in range(2):  # the second call trains nothing
            with (
                mock.patch.object(directory, "_write_report") as report,
                self.assertLogs("absl", "WARNING") as logs,
            ):
                found = self.decompose(steps=5, batch_size=8, workdir=place)
            self.check_warned(logs)
            report.assert_called_once()
            self.assertEqual(found.history[-1]["step"], 5)
            self.assertIsNone(found.other)
        saved = apd_jax.load(place / "components", networks.make("tms")[0])
        jax.tree.map(np.testing.assert_array_equal, saved.components, found.components)

    @pytest.mark.slow
    def test_a_training_that_they_ended_is_handed_back(self):
        with (
            self.assertLogs("absl", "WARNING") as logs,
            self.assertRaisesRegex(apd_jax.DataFailed, "the shard is gone") as caught,
        ):
            self.decompose(steps=20, batch_size=8)
        self.check_warned(logs)
        self.assertEqual(caught.exception.decomposition.history[-1]["step"], 10)


if __name__ == "__main__":
    absltest.main()
