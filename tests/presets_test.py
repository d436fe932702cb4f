"""Settings that `decompose` takes where the caller gives none."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.decomposition.logits import gives_logits_of_tokens
from apd_jax.evaluation import findings
from apd_jax.training import presets

POSITIONS = {"minimality_loss": "kl", "per_position": True, "topk": 4}


class BaseTest(parameterized.TestCase):
    @parameterized.parameters(
        ({},), ({"minimality_loss": "kl"},), ({"per_position": True},), ({"topk": 4},)
    )
    def test_other_networks_have_the_robust_settings(self, options):
        self.assertIs(presets.base(options), presets.ROBUST)

    def test_logits_at_positions(self):
        self.assertIs(presets.base(POSITIONS), presets.LOGITS)
        self.assertIs(presets.base(POSITIONS | {"topk": np.int64(4)}), presets.LOGITS)

    @parameterized.parameters(np.float32, np.array, jnp.array)
    def test_numbers_of_any_library(self, kind):
        for k, count in ((4, 10), (4, 128), (1.5, 10)):
            plain = presets.base(POSITIONS | {"topk": k, "num_components": count})
            given = POSITIONS | {"topk": kind(k), "num_components": np.array(count)}
            self.assertEqual(presets.base(given), plain)

    @parameterized.parameters(1.5, "auto")
    def test_batch_wide_rule_where_k_is_not_whole(self, k):
        found = presets.base(POSITIONS | {"topk": k})
        self.assertEqual(found.objective.selection, "batch")
        self.assertEqual(found.start, "singular")

    @parameterized.parameters(((64, 256), "sketch"), ((4, 8), "auto"))
    def test_exact_scores_of_few_outputs(self, shape, mode):
        found = presets.with_exact_scores(presets.LOGITS, shape)
        self.assertEqual(found.objective.routes.attribution_mode, mode)
        (finding,) = findings.on_positions(found)
        self.assertIn("presets.LOGITS", finding.text)
        self.assertIn(
            "32 random directions (8 in training)" if mode == "sketch" else "exact attributions",
            finding.text,
        )

    def test_other_settings_are_not_described(self):
        self.assertEmpty(findings.on_positions(presets.ROBUST))

    @parameterized.parameters(
        ({}, True),
        ({"topk": 1.5}, True),
        ({"topk": "auto"}, True),
        ({"per_position": True}, False),
        ({"per_position": False}, False),
        ({"minimality_loss": "kl"}, False),
        ({"minimality_loss": "mse"}, False),
        ({"topk": None}, False),
    )
    def test_a_language_model_of_which_nothing_is_said(self, options, logits):
        found = presets.base({"topk": 4} | options, logits=True)
        self.assertEqual(found.objective.minimality_loss == "kl", logits)
        self.assertEqual(found.objective.per_position, logits)

    @parameterized.parameters(("mse", 4, "sample"), ("mse", 1.5, "batch"), ("kl", 4, "sample"))
    def test_a_sketch_of_positions_has_directions_enough(self, loss, k, selection):
        options = {"per_position": True, "minimality_loss": loss, "topk": k, "num_components": 9}
        objective = presets.base(options | {"attribution_mode": "sketch"}).objective
        self.assertEqual(objective.selection, selection)
        self.assertEqual(objective.routes, presets.LOGITS.objective.routes)
        settings = apd_jax.config_fields.from_mapping(
            presets.base(options | {"attribution_mode": "sketch"}),
            options | {"attribution_mode": "sketch"},
        )
        self.assertIn("standard error of about 25%", findings.on_positions(settings)[0].text)


def language_model(params, tokens):
    """Logits of the tokens, [B, T, 9]."""
    hidden = jax.nn.relu(params["embed"][tokens] @ params["hidden"])
    return jax.nn.relu(hidden @ params["wide"]) @ params["logits"]


SHAPES = {"embed": (9, 4), "hidden": (4, 6), "wide": (6, 6), "logits": (6, 9)}
PARAMS = {n: networks.normal(i, *s) for i, (n, s) in enumerate(SHAPES.items())}
TOKENS = np.random.default_rng(0).integers(0, 9, (32, 5)).astype(np.int32)


class NetworkTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("tokens", language_model, TOKENS, True),
        ("tied", lambda p, x: p["embed"][x] @ p["embed"].T, TOKENS, True),
        ("take", lambda p, x: jnp.take(p["embed"], x, axis=0) @ p["embed"].T, TOKENS, True),
        ("jitted", jax.jit(language_model), TOKENS, True),
        ("mask", lambda p, x: language_model(p, x["ids"]), {"ids": TOKENS, "m": TOKENS > 3}, True),
        ("hidden_states", lambda p, x: p["embed"][x] @ p["hidden"] @ p["wide"], TOKENS, False),
        ("one_output", lambda p, x: language_model(p, x)[:, -1], TOKENS, False),
        ("two_outputs", lambda p, x: (language_model(p, x), x * 1.0), TOKENS, False),
        ("numbers", lambda p, x: x[..., None] * p["logits"][0], TOKENS * 1.0, False),
        ("fails", lambda p, x: x @ p["logits"], TOKENS, False),
    )
    def test_logits_of_tokens(self, network, x, expected):
        target = apd_jax.Target(network, PARAMS)
        self.assertEqual(gives_logits_of_tokens(target, x), expected)


class DecomposeTest(absltest.TestCase):
    @pytest.mark.slow
    def test_chosen_by_what_is_decomposed_and_said_in_the_summary(self):
        found = apd_jax.decompose(
            apd_jax.Target(language_model, PARAMS),
            TOKENS,
            topk=4,
            num_components=8,
            rank=2,
            steps=3,
            batch_size=8,
            chunk_steps=1,
            schedules={"topk": "0:2 0.4:1"},
        )
        objective = found.settings.objective
        self.assertEqual((objective.selection, found.settings.start), ("sample", "singular"))
        self.assertEqual((objective.routes.num_probes, objective.routes.evaluation_probes), (8, 32))
        self.assertEqual([row["active_components"] for row in found.history], [8, 4, 4])
        self.assertTrue(bool(jnp.all(found.mask(TOKENS).sum(axis=-1) == 4)))
        remarks = found.summary(TOKENS, baselines=()).remarks
        self.assertTrue(any("presets.LOGITS" in text for text in remarks), remarks)


if __name__ == "__main__":
    absltest.main()
