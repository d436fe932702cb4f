"""The study of language models: its measures, its figures, and how components are shown."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest

from apd_jax import config_fields
from apd_jax.components import init_components
from apd_jax.decomposition.result import Decomposition
from apd_jax.evaluation.evidence import distance, rows
from apd_jax.masked.forward import masked_apply
from apd_jax.report import parts
from apd_jax.report.contexts import Context, Described, content
from apd_jax.run.config import read_config
from apd_jax.studies.language_model import measures
from apd_jax.studies.language_model.network import LanguageModel
from apd_jax.studies.language_model.study import STUDY
from apd_jax.studies.pretraining import final_loss
from apd_jax.studies.verdicts import Threshold, judge
from apd_jax.training.presets import LOGITS
from configs import language_model

SMALL = LanguageModel(layers=1, width=8, heads=2, mlp_width=12, context=6, text_bytes=5000)


def decomposition():
    target = SMALL.target(SMALL.init(jax.random.key(0)))
    components = init_components(jax.random.key(1), target, num_components=5, rank=2, scale=5.0)
    settings = config_fields.from_mapping(
        LOGITS, {"num_components": 5, "rank": 2, "topk": 2, "batch_size": 8}
    )
    return Decomposition(target, components, settings)


class MeasuresTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.found = decomposition()
        cls.x = np.asarray(SMALL.held_out(jax.random.key(2), 8))
        block, _ = rows.examples(cls.found.target, cls.x, "next_tokens", None, True)
        cls.block = block._replace(outputs=distance.outputs(cls.found.target, block.x))

    @pytest.mark.slow
    def test_a_point_of_the_curve_is_what_its_definition_says(self):
        own = measures._own(self.found, self.block)
        mask = own.mask(3)
        self.assertTrue(np.all(mask.sum(axis=-1) == 3))
        scores = np.sort(own.scores, axis=-1)
        np.testing.assert_array_equal(own.scores >= scores[..., -3:-2], mask)
        entropies = measures._reference(self.found, self.block)
        kl, recovered = measures._point(self.found, own.parts, mask, self.block, entropies)
        target, components = self.found.target, self.found.components
        weights = {site: jnp.zeros_like(w) for site, w in target.weights.items()}
        nothing = target.with_weights(weights)(self.x)
        ours = masked_apply(target, components, self.x, jnp.asarray(mask))

        def log_probabilities(logits):
            logits = np.asarray(logits, np.float64)
            return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

        p, q, z = (log_probabilities(out) for out in (target(self.x), ours, nothing))
        np.testing.assert_allclose(kl, np.mean(np.sum(np.exp(p) * (p - q), -1)), rtol=1e-3)

        def cross_entropy(log_p):
            labels = self.x[:, 1:, None]
            return -np.take_along_axis(log_p[:, :-1], labels, axis=-1).mean()

        entropy_p, entropy_q, entropy_z = map(cross_entropy, (p, q, z))
        np.testing.assert_allclose(entropies["target"], entropy_p, rtol=1e-4)
        expected = (entropy_z - entropy_q) / (entropy_z - entropy_p)
        np.testing.assert_allclose(recovered, expected, rtol=1e-2)

    @pytest.mark.slow
    def test_components_are_described_by_their_own_positions(self):
        own = measures._own(self.found, self.block)
        described, share = measures.describe(self.found, self.x, own.scores)
        self.assertAlmostEqual(share.sum(), 2, places=5)
        self.assertEqual([one.share for one in described], sorted(share[share > 0])[::-1])
        whole = bytes(self.x.astype(np.uint8).ravel()).decode("latin1")
        for one in described:
            shares = [context.share for context in one.contexts]
            self.assertEqual(shares, sorted(shares, reverse=True))
            self.assertBetween(shares[0], 0, 1)
            for context in one.contexts:
                text = (context.before + context.here + context.after).replace("⏎", "\n")
                self.assertIn(text, whole)

    @pytest.mark.slow
    def test_no_component_that_is_ever_active(self):
        scores = np.full((*self.x.shape, 5), np.nan, np.float32)
        described, share = measures.describe(self.found, self.x, scores)
        self.assertEqual((described, share.sum()), ([], 0))

    @pytest.mark.slow
    def test_the_effect_of_one_component_on_its_contexts(self):
        own = measures._own(self.found, self.block)
        one = measures.describe(self.found, self.x, own.scores)[0][0]
        table = measures.ranking.shares(own.scores.reshape(-1, 5))[:, one.number]
        active = np.flatnonzero(own.mask(2).reshape(-1, 5)[:, one.number])
        best = active[np.argsort(-table[active], kind="stable")[: len(one.contexts)]] // 6
        log_p, log_q = (
            np.asarray(jax.nn.log_softmax(outputs), np.float64)
            for outputs in (
                self.found.ablate(self.x[best], []),
                self.found.ablate(self.x[best], one.number),
            )
        )
        expected = np.sum(np.exp(log_p) * (log_p - log_q), axis=-1).mean()
        np.testing.assert_allclose(one.without, expected, rtol=1e-3)

    @pytest.mark.slow
    def test_evaluation_and_figures(self):
        numbers, arrays = STUDY.evaluate(SMALL, self.found, key=jax.random.key(3), samples=8)
        self.assertEqual(set(numbers) - set(STUDY.measures), {"solved"})
        self.assertTrue(all(math.isfinite(value) for value in numbers.values()))
        self.assertEqual(set(arrays.curves), {"components", "svd", "bundled", "neurons"})
        everything = arrays.curves["svd"]
        self.assertLess(everything.kl[-1], arrays.curves["components"].kl[-1])
        figures = STUDY.draw(numbers, arrays)
        self.assertEqual(set(figures), set(STUDY.captions))


class StudyTest(absltest.TestCase):
    def test_config_has_the_settings_of_the_preset(self):
        config = read_config(language_model.get_config("4"), STUDY)
        self.assertEqual(config.target.layers, 4)
        expected = config_fields.from_mapping(
            LOGITS, {"num_components": 128, "rank": 2, "topk": 7.0}
        )
        self.assertEqual(config.settings, expected)

    def test_every_line_of_the_evidence_has_a_verdict(self):
        keys = [threshold.key for threshold in STUDY.thresholds("2")]
        for name in ("own", "random", "adversarial_20", "l0", "active_rank", "ce_recovered"):
            self.assertIn(f"evidence_{name}", keys)  # of every seed, not of their mean
        self.assertContainsSubset(keys, STUDY.measures)  # what the report calls them
        ranks = {v: t.threshold for v in "124" for t in STUDY.thresholds(v) if "rank" in t.key}
        self.assertEqual(ranks, {"1": 96, "2": 192, "4": 384})

    def test_verdict_against_another_number(self):
        threshold = Threshold("a", "<=", "b", "")
        for limit, passed in ((2.0, True), (0.5, False), (math.nan, False)):
            (verdict,) = judge([threshold], {"a": 1.0, "b": limit})
            self.assertEqual(verdict["passed"], passed)
        (verdict,) = judge([threshold], {"b": 2.0})  # not measured
        self.assertFalse(verdict["passed"])
        (verdict,) = judge([threshold], {"a": 1.0})
        self.assertFalse(verdict["passed"])

    @pytest.mark.slow
    def test_loss_is_measured_on_held_out_text(self):
        task = dataclasses.replace(SMALL, text_bytes=100)
        params = jax.tree.map(lambda leaf: leaf[None], task.init(jax.random.key(0)))
        found = final_loss(task, params, jnp.zeros(1, jnp.uint32))
        self.assertEqual(task.loss_batches, (8, 64))
        inputs = task.loss_inputs(jax.random.key(5), 3)
        held_out = bytes(np.asarray(task.held_out(jax.random.key(5), 3), np.uint8).ravel())
        self.assertEqual(bytes(np.asarray(inputs, np.uint8).ravel()), held_out)
        self.assertBetween(float(found[0]), 5.0, 6.0)

    def test_contexts_are_escaped(self):
        one = Described(3, 0.25, "mlp/up 90%", 0.5, [Context("<b>", "&", "x", 1.0)])
        page = parts.render("contexts.html.j2", **content([one], [3]))
        self.assertIn("&lt;b&gt;<mark>&amp;</mark>x", page)
        self.assertEqual(page.count('<th scope="row">3</th>'), 2)  # drawn, and among all
        self.assertEqual(parts.render("contexts.html.j2", contexts=None).strip(), "")


if __name__ == "__main__":
    absltest.main()
