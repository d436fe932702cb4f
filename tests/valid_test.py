"""`valid`: examples and positions that don't count change nothing of those that do."""

import dataclasses
import functools
import tempfile
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import padded
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax import validity
from apd_jax.decomposition import directory
from apd_jax.decomposition.checks import check_target
from apd_jax.decomposition.result import Decomposition
from apd_jax.errors import UserError
from apd_jax.evaluation import seen, without
from apd_jax.evaluation.labels import label_array
from apd_jax.objective import selection
from apd_jax.objective.coefficients import Coefficients, Multipliers, Routes
from apd_jax.objective.normalisation import scales
from apd_jax.objective.objective import Objective
from apd_jax.report import decomposition_page
from apd_jax.training.config import Settings
from apd_jax.training.optimizers import decomposition_optimizer
from apd_jax.training.step import init_state, train_step

EVERYTHING = Coefficients(
    faithfulness=1, minimality=2, simplicity=0.5, activation=1, output=1, lp_minimality=0.3,
    lp_simplicity=0.2,
)  # fmt: skip
C = 6


def objective(**options):
    options = {"topk": 1.3, "valid": padded.valid, "coefficients": EVERYTHING} | options
    return Objective(hidden_sites=("v", "read"), **options)


def components(target):
    return apd_jax.init_components(jax.random.key(3), target, num_components=C, rank=2)


@functools.partial(jax.jit, static_argnums=0)
def measured(objective, target, components, x):
    """Scores, mask, terms, and the gradient of the total."""

    def total(components):
        terms, chosen = objective.terms(target, components, x)
        return objective.total(terms), (terms, chosen)

    gradient, (terms, chosen) = jax.grad(total, has_aux=True)(components)
    scores = objective.attribute(target, components, x).scores
    return scores, chosen.mask, chosen.counts(), terms, gradient


CASES = (
    # side, causal, pooled, per position, further options
    ("right", True, False, True, {"minimality_loss": "kl", "metric": "fisher"}),
    ("left", True, False, True, {}),
    ("right", False, False, False, {"minimality_loss": "kl"}),
    ("left", False, False, False, {"metric": "fisher", "routes": Routes("forward")}),
    ("left", False, True, False, {"selection": "sample", "topk": 2.0}),
    ("right", False, False, True, {"distil": True, "routes": Routes(masked_route="grouped")}),
    ("right", True, False, True, {"metric": lambda out: jnp.tanh(out), "topk": None,
        "coefficients": dataclasses.replace(
            EVERYTHING, minimality=0, simplicity=0, activation=0)}),
)  # fmt: skip


class PaddingTest(parameterized.TestCase):
    @parameterized.parameters(*CASES)
    @pytest.mark.slow
    def test_changes_nothing(self, side, causal, pooled, per_position, options):
        target = padded.network(causal=causal, pooled=pooled)
        own = components(target)
        if pooled:  # the activation loss would need to know where positions are in the outputs
            self.assertEqual(target(padded.batch()).shape, (padded.B, padded.OUTPUTS))
        rule = objective(per_position=per_position, **options)
        alone = measured(rule, target, own, padded.batch())
        found = measured(rule, target, own, padded.batch(side))
        scores, mask, counts, terms, gradient = found
        if per_position:
            inside = jnp.zeros(padded.PADDED, bool).at[padded.real(side)].set(True)
            np.testing.assert_array_equal(scores[:, ~inside], 0)
            np.testing.assert_array_equal(mask[:, ~inside], False)
            scores, mask = scores[:, inside], mask[:, inside]
        chex.assert_trees_all_equal((mask, counts), alone[1:3])
        chex.assert_trees_all_close(scores, alone[0], rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close((terms, gradient), alone[3:], rtol=1e-4, atol=1e-6)

    @parameterized.parameters(*CASES[1:3])
    @pytest.mark.slow
    def test_all_valid_is_the_same_as_none(self, side, causal, pooled, per_position, options):
        target = padded.network(causal=causal, pooled=pooled)
        own = components(target)
        rule = objective(per_position=per_position, **options)
        plain = dataclasses.replace(rule, valid=None)
        alone = measured(rule, target, own, padded.batch())
        chex.assert_trees_all_close(
            alone, measured(plain, target, own, padded.batch()), rtol=1e-5, atol=1e-6
        )
        # Without `valid`, padding changes the losses: the network does not hide it by itself.
        terms = jax.jit(lambda x: plain.terms(target, own, x)[0])(padded.batch(side))
        self.assertFalse(np.allclose(terms["output"], alone[3]["output"], rtol=1e-3))

    @parameterized.parameters("ablation", "activation")
    def test_changes_no_attributions_without_derivatives(self, method):
        target = padded.network()
        own, rule = components(target), objective(attribution=method, coefficients=Coefficients())
        scores = jax.jit(lambda x: rule.attribute(target, own, x).scores)
        alone, found = (scores(padded.batch(side)) for side in ("none", "left"))
        chex.assert_trees_all_close(found, alone, rtol=1e-5)

    @parameterized.parameters(True, False)
    @pytest.mark.slow
    def test_changes_no_scales(self, per_position):
        target = padded.network(causal=True)
        rule = objective(per_position=per_position)
        measure = jax.jit(lambda x: scales(rule, target, x))
        alone, found = (measure(padded.batch(side)) for side in ("none", "right"))
        chex.assert_trees_all_close(found, alone, rtol=1e-5)

    def test_sketch_is_unbiased(self):
        target, x = padded.network(), padded.batch("right")
        own, rule = components(target), objective(per_position=True)
        exact = jax.jit(rule.attribute)(target, own, x).scores
        sketch = dataclasses.replace(rule, routes=Routes("sketch", num_probes=1000))
        found = jax.jit(sketch.attribute)(target, own, x, jax.random.key(0)).scores
        np.testing.assert_array_equal(found[:, padded.REAL :], 0)
        np.testing.assert_allclose(found, exact, rtol=0.2, atol=0.05 * float(exact.max()))

    @parameterized.parameters("rms", "fisher")
    @pytest.mark.slow
    def test_literal_route_agrees(self, metric):
        target, x = padded.network(), padded.batch("left")
        own = components(target)
        found = [
            jax.jit(rule.attribute)(target, own, x).scores
            for rule in (
                objective(per_position=True, metric=metric, routes=Routes(mode))
                for mode in ("reverse", "literal")
            )
        ]
        chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-6)

    @parameterized.parameters("kl", lambda a, b: jnp.abs(a - b) / (jnp.abs(b) + jnp.abs(a)))
    @pytest.mark.slow
    def test_nan_there_is_not_seen(self, loss):
        own = components(padded.network())
        rule = objective(per_position=True, minimality_loss=loss, metric="fisher")
        x = padded.batch("left")
        clean, spoilt = (measured(rule, padded.network(nan=nan), own, x) for nan in (False, True))
        chex.assert_tree_all_finite(spoilt)
        chex.assert_trees_all_close(spoilt, clean, rtol=1e-4, atol=1e-6)

    @parameterized.parameters(True, False)
    @pytest.mark.slow
    def test_nothing_that_counts(self, per_position):
        target, x = padded.network(), padded.batch("right")
        x["mask"] = np.zeros_like(x["mask"])
        rule = objective(per_position=per_position)
        scores, mask, counts, terms, gradient = measured(rule, target, components(target), x)
        chex.assert_tree_all_finite((scores, terms, gradient))
        self.assertFalse(mask.any() or counts.any() or scores.any())
        self.assertEqual(float(terms["minimality"]), 0)
        chex.assert_tree_all_finite(jax.jit(lambda x: scales(rule, target, x))(x))

    @pytest.mark.slow
    def test_step_counts_real_positions(self):
        target, x = padded.network(causal=True), padded.batch("left")
        rule = objective(per_position=True, topk=2.0)
        optimizer = decomposition_optimizer(lambda step: 1e-3)

        @jax.jit
        def active_components(multiplier):
            state = init_state(components(target), optimizer)
            multipliers = Multipliers(multiplier)
            _, metrics = train_step(rule, optimizer, target, state, x, multipliers=multipliers)
            return metrics["active_components"]

        for multiplier, expected in ((None, 2.0), (jnp.float32(0.5), 1.0)):
            self.assertEqual(float(active_components(multiplier)), expected)

    def test_examples_that_do_not_count(self):
        target, x = networks.make("mlp")
        own = networks.components(target)
        here = np.array([1, 0, 1, 1, 0, 1, 1], bool)
        options = {"topk": 1.3, "selection": "batch"}
        rule = Objective(valid=lambda x: jnp.asarray(here), **options)
        found = measured(rule, target, own, x)
        alone = measured(Objective(**options), target, own, x[here])
        chex.assert_trees_all_close(found[0][here], alone[0], rtol=1e-5)
        chex.assert_trees_all_equal(found[1][here], alone[1])
        chex.assert_trees_all_close(found[2:], alone[2:], rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(found[1][~here], False)


class SelectionTest(parameterized.TestCase):
    @parameterized.product(k=(0.4, 1.0, 1.28, 2.5), seed=(0, 1, 2, 3), factor=(None, 0.6))
    @pytest.mark.slow
    def test_exactly_floor_of_k_times_the_rows_that_count(self, k, seed, factor):
        rng = np.random.default_rng(seed)
        scores = rng.integers(0, 3, (25, 4)).astype("f4")  # full of ties
        rows = rng.random(25) < (0.2, 0.6, 1.0, 0.0)[seed]
        scores[~rows] = 100
        total = int(rows.sum())
        count = int(np.floor(k * total))
        if factor:
            count = min(max(int(np.floor(np.float32(factor) * np.float32(k * total))), 1), count)
        flat = np.where(rows[:, None], scores, -np.inf).ravel()
        expected = np.zeros(flat.size, bool)
        expected[np.argsort(-flat, kind="stable")[:count]] = True
        found = jax.jit(selection.batch_topk, static_argnums=1)(
            scores, k, rows, None if factor is None else jnp.float32(factor)
        )
        np.testing.assert_array_equal(found.mask.ravel(), expected)
        np.testing.assert_array_equal(found.counts(), found.mask.sum(axis=0))

    @parameterized.parameters("batch", "sample", "exact")
    @pytest.mark.slow
    def test_every_rule_leaves_the_rest_out(self, rule):
        x = jnp.arange(12.0).reshape(4, 3) % 4
        scores = jnp.where(jnp.arange(4)[:, None] == 2, jnp.nan, jnp.ones((4, 5)))
        here = jnp.array([True, False, False, True])
        own = Objective(topk=2.0, selection=rule, distil=True, valid=lambda x: here)
        chosen = own.select(scores, x)
        count = 2 * 2 if rule != "exact" else int(jnp.count_nonzero(x[np.array([0, 3])]))
        self.assertEqual(int(chosen.mask[:, :-1].sum()), count)
        np.testing.assert_array_equal(chosen.mask[:, -1], here)
        np.testing.assert_array_equal(chosen.mask[1:3], False)
        np.testing.assert_array_equal(chosen.counts(), chosen.mask.sum(axis=0))


class RefusedTest(parameterized.TestCase):
    @parameterized.parameters(
        (lambda x: x["mask"].astype("f4"), {}, "float32: compare"),
        (lambda x: x["mask"][0], {}, r"got shape \(7,\)"),
        (lambda x: x["mask"][:, 1:], {}, r"\(3, 6\).*positions"),
        (lambda x: x["mask"][:, 1:], {"per_position": True}, r"\(3, 6\)"),
        (lambda x: np.asarray(x["mask"]), {}, "use jax.numpy"),
        (lambda x: x["mosk"], {}, "mosk"),
        (lambda x: x.mask, {}, "AttributeError: .*use jax.numpy"),
        (lambda x: None, {}, "use jax.numpy"),
        (lambda x: x["mask"] if x["mask"].any() else None, {}, r"which fails \([^\n]*\): use jax"),
        (lambda x: jnp.zeros(2).reshape(3), {}, "TypeError: .*use jax.numpy"),
        (lambda x: x["mask"], {"minimality_loss": lambda a, b: jnp.mean(a - b)}, "minimality_loss"),
        (lambda x: x["mask"], {"metric": lambda out: out[..., 0]}, "the metric's values"),
    )
    @pytest.mark.slow
    def test_before_training(self, valid, options, message):
        target, x = padded.network(), padded.batch("right")
        with self.assertRaisesRegex(UserError, message):
            check_target(target, x, Objective(valid=valid, **options))

    @parameterized.parameters((np.ones(3), "function of the batch"), (lambda: 1, "valid must be"))
    def test_no_function(self, valid, message):
        with self.assertRaisesRegex(UserError, message):
            Objective(valid=valid)

    @pytest.mark.slow
    def test_gradients_that_padding_spoils(self):
        """A query whose keys are all masked by an infinity: NaN times 0 reaches every weight."""
        target, x = padded.network(causal=True, masked=-jnp.inf), padded.batch("left")
        here = np.asarray(x["mask"], bool)
        self.assertTrue(np.isfinite(np.asarray(target(x))[here]).all())
        with self.assertRaisesRegex(UserError, "gradients of the outputs that count are NaN"):
            check_target(target, x, Objective(valid=padded.valid))
        check_target(padded.network(causal=True), x, Objective(valid=padded.valid))
        check_target(padded.network(causal=True, nan=True), x, Objective(valid=padded.valid))

    def test_same_shape_as_outputs(self):
        with self.assertRaisesRegex(UserError, "same shape"):
            validity.of_entries(jnp.ones((3, 4), bool), jnp.ones((3, 4)))


def decomposition(target, **options):
    own = components(target)
    settings = Settings(objective(**options), num_components=C, batch_size=2)
    return Decomposition(target, own, settings, example=padded.batch())


class DecompositionTest(parameterized.TestCase):
    @parameterized.parameters((False, True, "left"), (False, False, "right"), (True, False, "left"))
    @pytest.mark.slow
    def test_summary_of_padded_examples(self, pooled, per_position, side):
        target = padded.network(pooled=pooled)
        found = decomposition(
            target, per_position=per_position, selection="sample", topk=2.0, minimality_loss="kl"
        )
        alone, more = padded.batch(count=4), padded.batch(side, count=4)
        outputs = np.asarray(target(alone))
        labels = outputs.argmax(axis=-1)
        if not pooled:
            labels[0, :2] = (labels[0, :2] + 1) % padded.OUTPUTS
            labels[1, 0] = -100
        wide = labels
        if not pooled:
            wide = np.zeros((4, padded.PADDED), int)  # a class, where padding does not count
            wide[:, padded.real(side)] = labels
        summaries = [found.summary(alone, labels, "svd"), found.summary(more, wide, "svd")]
        for one, two in zip(*(s.rows for s in summaries), strict=True):
            self.assertEqual(one.name, two.name)
            np.testing.assert_allclose(
                [one.active_components or 0, one.active_rank, one.error, one.quality],
                [two.active_components or 0, two.active_rank, two.error, two.quality],
                rtol=1e-4,
                atol=1e-6,
            )
        np.testing.assert_allclose(*(s.active_share for s in summaries))
        if not pooled:
            self.assertAlmostEqual(summaries[1].row("network").quality, 13 / 15)
        first, second = (found.top_examples(1, x, 5) for x in (alone, more))
        np.testing.assert_array_equal(first.examples, second.examples)
        np.testing.assert_allclose(first.scores, second.scores, rtol=1e-4)
        if per_position:
            shift = padded.real(side).start
            np.testing.assert_array_equal(first.positions + shift, second.positions)

    @parameterized.product(
        side=("left", "right"),
        loss=("kl", "mse"),
        shape=(dict(per_position=True), dict(per_position=False), dict(pooled=True)),
    )
    @pytest.mark.slow
    def test_changes_without_a_component(self, side, loss, shape):
        """Also where outputs are NaN at padding."""
        pooled, per_position = (shape.get(name, False) for name in ("pooled", "per_position"))
        target = padded.network(pooled=pooled, nan=not pooled)
        found = decomposition(target, per_position=per_position, minimality_loss=loss)
        taken, on = np.array([0, 3, 5, 3, 1]), np.array([1, 1, 0, 3, 2])
        alone, more = (
            without.changes(found, padded.batch(s, count=4), taken, on) for s in ("none", side)
        )
        self.assertTrue((alone > 0).all())
        np.testing.assert_allclose(more, alone, rtol=1e-4)

    def test_changes_of_outputs_with_and_without_positions(self):
        each, pooled = padded.network(nan=True), padded.network(pooled=True)

        def apply_fn(p, x):
            return {"each": each.apply_fn(p, x), "pooled": pooled.apply_fn(p, x)}

        target = apd_jax.Target(apply_fn, padded.parameters(), inputs=padded.batch())
        found, on = decomposition(target, minimality_loss="mse"), np.array([2, 0])
        alone, more = (
            without.changes(found, padded.batch(s), np.array([1, 4]), on) for s in ("none", "left")
        )
        np.testing.assert_allclose(more, alone, rtol=1e-4)

    def test_changes_where_an_example_does_not_count(self):
        found = decomposition(
            padded.network(), valid=lambda x: x["mask"][:, 0] > 0, minimality_loss="mse"
        )
        taken, on = np.array([2, 2]), np.array([0, 1])
        x = padded.batch()
        expected = without.changes(found, x, taken, on)
        x["mask"][1, 0] = 0
        np.testing.assert_allclose(without.changes(found, x, taken, on), [expected[0], 0])

    @parameterized.product(side=("left", "right"), per_position=(True, False))
    @pytest.mark.slow
    def test_padding_is_no_next_token(self, side, per_position):
        target, alone, more = padded.language_model(), padded.tokens(), padded.tokens(side)
        found = decomposition(
            target,
            valid=lambda x: x > 0,
            per_position=per_position,
            minimality_loss="kl",
            selection="sample",
            topk=2.0,
        )
        summaries = [found.summary(x, "next_tokens", "svd") for x in (alone, more)]
        for one, two in zip(*(s.rows for s in summaries), strict=True):
            np.testing.assert_allclose(
                [one.error, one.quality, one.cross_entropy],
                [two.error, two.quality, two.cross_entropy],
                rtol=1e-4,
                atol=1e-6,
            )

    def test_next_tokens_beside_a_mask_of_padding(self):
        def apply_fn(params, x):
            return params["embed"][x["ids"]] @ params["embed"].T * x["a_mask"][..., None]

        params = {"embed": padded.parameters()["embed"]}
        ids = np.array([[5, 6, 7, 0, 0], [8, 2, 3, 4, 0]])
        x = {"a_mask": (ids > 0).astype("int32"), "ids": ids}
        target = apd_jax.Target(apply_fn, params, inputs=x)
        found = label_array(target, x, "next_tokens", Objective(topk=1.0))
        np.testing.assert_array_equal(found, [[6, 7, 0, 0, -1], [2, 3, 4, 0, -1]])

    def test_next_tokens_that_count(self):
        target, x = padded.language_model(), np.array([[5, 6, 7, 0, 0], [0, 0, 3, 4, 9]])
        every = label_array(target, x, "next_tokens", Objective(topk=1.0))
        np.testing.assert_array_equal(every, [[6, 7, 0, 0, -1], [0, 3, 4, 9, -1]])
        own = Objective(topk=1.0, valid=lambda x: x > 0)
        expected = [[6, 7, -1, -1, -1], [-1, -1, 4, 9, -1]]
        np.testing.assert_array_equal(label_array(target, x, "next_tokens", own), expected)
        last = Objective(topk=1.0, valid=lambda x: x[:, 0] < 1)
        expected = [[-1] * 5, [0, 3, 4, 9, -1]]
        np.testing.assert_array_equal(label_array(target, x, "next_tokens", last), expected)

        found = decomposition(target, valid=own.valid)
        stop = mock.patch.object(Decomposition, "see", side_effect=InterruptedError)
        with stop as see, self.assertRaises(InterruptedError):
            decomposition_page.render(found, x, "next_tokens")
        np.testing.assert_array_equal(
            see.call_args.args[-1], [[6, 7, -1, -1, -1], [-1, -1, 4, 9, -1]]
        )

    def test_attributions_and_masks_are_zero_where_nothing_counts(self):
        found = decomposition(padded.network(), per_position=True)
        x = padded.batch("right")
        self.assertTrue(found.attributions(x)[:, : padded.REAL].all())
        self.assertFalse(found.attributions(x)[:, padded.REAL :].any())
        self.assertFalse(found.mask(x)[:, padded.REAL :].any())

    def test_k_of_every_k_is_that_of_the_rows_that_count(self):
        """The numbers of the search for k and of the curves."""
        found = decomposition(padded.network(), per_position=True)
        x = padded.batch("left", count=4)
        seen_ = found.see(x)
        self.assertLen(seen_.scores, 4 * padded.REAL)
        options = found.objective, found.target, found.components, x, 2
        kept, anew = seen.points([1.5], *options, found=seen_), seen.points([1.5], *options)
        chex.assert_trees_all_close(kept, anew, rtol=1e-5)
        self.assertEqual(kept[0].active, 1.5)

    def test_nothing_that_counts_in_the_examples(self):
        found, x = decomposition(padded.network()), padded.batch("left")
        x["mask"] = np.zeros_like(x["mask"])
        with self.assertRaisesRegex(UserError, "excludes every row"):
            found.summary(x)

    @parameterized.parameters(lambda x: x["mask"] > 1, lambda x: jnp.zeros(len(x["mask"]), bool))
    @pytest.mark.slow
    def test_nothing_that_counts_in_the_training(self, valid):
        data = [padded.batch("left")] * 2
        with self.assertRaisesRegex(UserError, "excludes every row of the 1024 examples"):
            apd_jax.decompose(
                padded.network(), data, num_components=3, rank=1, topk=1, steps=2, valid=valid
            )

    def test_is_kept_by_name_and_given_again(self):
        found = decomposition(padded.network())
        directory = tempfile.mkdtemp()
        found.save(directory)
        with self.assertRaisesRegex(UserError, r"load\(..., valid=...\)"):
            apd_jax.load(directory, found.target)
        again = apd_jax.load(directory, found.target, valid=padded.valid)
        self.assertIs(again.objective.valid, padded.valid)

    @pytest.mark.slow
    def test_padding_does_not_take_the_k_of_real_positions(self):
        """Of 8 positions 4 are real; k = 1 is one component at each of them."""
        ids = np.random.default_rng(0).integers(0, 20, (64, 8))
        mask = (np.arange(8) < 4) * np.ones((64, 1), "f4")
        params = {
            "E": networks.normal(0, 20, 8), "A": networks.normal(1, 8, 16) / 3,
            "B": networks.normal(2, 16, 4) / 4,
        }  # fmt: skip

        def apply_fn(p, x):
            return jax.nn.relu(p["E"][x["ids"]] @ p["A"]) @ p["B"] * x["mask"][..., None]

        x, where = {"ids": ids, "mask": mask}, tempfile.mkdtemp()
        options = {
            "topk": 1.0, "per_position": True, "minimality_loss": "kl", "rank": 1,
            "num_components": 20, "steps": 20, "batch_size": 32, "chunk_steps": 10,
            "refine": {"every": 10, "until": 0.9, "ramp": 1},
        }  # fmt: skip
        target = apd_jax.Target(apply_fn, params, ["E", "A"])
        with mock.patch.object(directory, "_write_report"):  # which takes seconds to compile
            found = apd_jax.decompose(
                target, x, valid=lambda batch: batch["mask"] > 0, workdir=where, **options
            )
        chosen = np.asarray(found.mask(jax.tree.map(lambda leaf: leaf[:64], x)))
        self.assertEqual(chosen[:, :4].sum(-1).mean(), 1)
        self.assertFalse(chosen[:, 4:].any())
        active = found.summary(x, baselines=()).row("active components")
        self.assertEqual(active.active_components, 1)
        self.assertEqual(found.history[-1]["active_components"], 1)
        with self.assertRaisesRegex(UserError, "another function valid="):
            apd_jax.decompose(
                target, x, valid=lambda batch: batch["mask"] < 1, workdir=where, **options
            )


if __name__ == "__main__":
    absltest.main()
