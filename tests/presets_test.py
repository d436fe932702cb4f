"""Settings that `decompose` takes where the caller gives none."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
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
        text = presets.says(found)
        self.assertIn("presets.LOGITS", text)
        self.assertIn(
            "32 random directions (8 in training)" if mode == "sketch" else "exact attributions",
            text,
        )

    def test_other_settings_are_not_described(self):
        self.assertIsNone(presets.says(presets.ROBUST))


class DecomposeTest(absltest.TestCase):
    @pytest.mark.slow
    def test_chosen_by_what_is_decomposed_and_said_in_the_summary(self):
        def network(params, tokens):
            return jax.nn.relu(params["embed"][tokens] @ params["hidden"]) @ params["logits"]

        shapes = {"embed": (9, 4), "hidden": (4, 6), "logits": (6, 9)}
        params = {n: networks.normal(i, *s) for i, (n, s) in enumerate(shapes.items())}
        tokens = jax.random.randint(jax.random.key(0), (32, 5), 0, 9)
        found = apd_jax.decompose(
            apd_jax.Target(network, params),
            tokens,
            num_components=8,
            rank=2,
            steps=3,
            batch_size=8,
            chunk_steps=1,
            schedules={"topk": "0:2 0.4:1"},
            **POSITIONS,
        )
        objective = found.settings.objective
        self.assertEqual((objective.selection, found.settings.start), ("sample", "singular"))
        self.assertEqual((objective.routes.num_probes, objective.routes.evaluation_probes), (8, 32))
        self.assertEqual([row["active_components"] for row in found.history], [8, 4, 4])
        self.assertTrue(bool(jnp.all(found.mask(tokens).sum(axis=-1) == 4)))
        remarks = found.summary(tokens, baselines=()).remarks
        self.assertTrue(any("presets.LOGITS" in text for text in remarks), remarks)


if __name__ == "__main__":
    absltest.main()
