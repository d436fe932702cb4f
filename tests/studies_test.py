"""How results are judged and compared with published numbers."""

import math

from absl.testing import absltest, parameterized

from apd_jax import config_fields, studies
from apd_jax.studies import verdicts
from apd_jax.studies.verdicts import Published, Threshold

SEEDS = [{"mmcs": 0.9, "solved": True}, {"mmcs": 1.0, "solved": False}]


class VerdictsTest(parameterized.TestCase):
    def test_summarise(self):
        summary = verdicts.summarise(SEEDS)
        self.assertEqual(set(summary), {"mmcs_mean", "mmcs_std", "solve_rate"})
        self.assertAlmostEqual(summary["mmcs_mean"], 0.95)
        self.assertAlmostEqual(summary["mmcs_std"], 0.05)
        self.assertEqual(summary["solve_rate"], 0.5)

    @parameterized.parameters(
        (">=", 0.95, True),
        (">=", 0.96, False),
        ("<=", 0.95, True),
        ("<=", 0.94, False),
    )
    def test_judge(self, comparison, limit, passed):
        threshold = Threshold("mmcs_mean", comparison, limit, "close to 1")
        (verdict,) = verdicts.judge([threshold], {"mmcs_mean": 0.95})
        expected = {
            "name": "mmcs_mean",
            "description": "close to 1",
            "value": 0.95,
            "comparison": comparison,
            "threshold": limit,
            "passed": passed,
        }
        self.assertEqual(verdict, expected)

    @parameterized.product(value=(math.nan, math.inf, -math.inf), comparison=(">=", "<="))
    def test_what_is_not_finite_fails(self, value, comparison):
        (verdict,) = verdicts.judge([Threshold("x", comparison, 0.0, "")], {"x": value})
        self.assertFalse(verdict["passed"])

    @parameterized.parameters(
        ("<=", 2.0, [1.0, 2.5, 1.5], 1, False),
        ("<=", 3.0, [1.0, 2.5, 1.5], 1, True),
        (">=", 1.0, [1.0, 2.5, 0.5], 2, False),
        ("<=", "limit", [1.0, 2.5, 1.75], 2, False),  # of its own seed
        ("<=", 3.0, [1.0, math.nan, 9.0], 1, False),  # not measured
        ("<=", 3.0, [1.0, 2.0, None], 2, False),
    )
    def test_a_number_of_the_seeds_is_judged_at_the_worst_seed(
        self, comparison, limit, values, worst, passed
    ):
        seeds = [{"seed": i, "limit": 3.0 - i, "x": x} for i, x in enumerate(values)]
        seeds = [{k: v for k, v in seed.items() if v is not None} for seed in seeds]
        (verdict,) = verdicts.judge([Threshold("x", comparison, limit, "")], {}, seeds)
        self.assertEqual((verdict["seed"], verdict["passed"]), (worst, passed))

    def test_compare_one_seed_with_its_standard_error(self):
        published = [Published("x_mse", "MSE", "1e-4", None, "")]
        summary = {"x_mse_mean": 1.1254e-4, "x_mse_std": 0.0, "x_mse_standard_error_mean": 2e-6}
        (row,) = verdicts.compare(published, summary, 1)
        self.assertEqual(row["ours"], "1.125e-4 (standard error 2.0e-6)")

    @parameterized.parameters(
        (1, 0.95, 0.05, "0.95"),
        (2, 0.95, 0.05, "0.95 ± 0.05"),
        (2, 1.1254e-4, 2.51e-6, "1.125e-4 ± 2.5e-6"),
        (1, 0.0, 0.0, "0"),
    )
    def test_compare(self, seeds, mean, std, ours):
        published = [Published("mmcs", "MMCS", "0.998", None, "a cosine")]
        (row,) = verdicts.compare(published, {"mmcs_mean": mean, "mmcs_std": std}, seeds)
        expected = {
            "key": "mmcs",
            "label": "MMCS",
            "ours": ours,
            "paper": "0.998",
            "spd": None,
            "definition": "a cosine",
        }
        self.assertEqual(row, expected)


class StudiesTest(parameterized.TestCase):
    def test_unknown(self):
        with self.assertRaisesRegex(ValueError, r"one of \['gated_functions', .+\], got 'mnist'"):
            studies.find("mnist")

    @parameterized.parameters(
        ("tms", ("5-2", "40-10", "5-2-id", "40-10-id")), ("resid_mlp", ("1", "2", "3"))
    )
    def test_every_variant_has_numbers_and_thresholds(self, name, variants):
        study = studies.find(name)
        for variant in variants:
            self.assertNotEmpty(study.published(variant))
            self.assertNotEmpty(study.thresholds(variant))
            self.assertEqual(study.published(f"{variant}-robust"), study.published(variant))
            self.assertEqual(study.thresholds(f"{variant}-robust"), study.thresholds(variant))
        self.assertEqual(study.variants, (*variants, *(f"{v}-robust" for v in variants)))

    @parameterized.parameters(
        ("tms", "5-2", "Toy model of superposition 5-2"),
        ("gated_functions", "paper", "Hand-coded gated functions, paper"),
        ("linear_map", "low-rank-sparse", "Linear map, low-rank-sparse"),
        ("resid_mlp", "1", "Residual MLP, 1 layer"),
        ("resid_mlp", "2", "Residual MLP, 2 layers"),
        ("resid_mlp", "1-robust", "Residual MLP, 1 layer, robust"),
    )
    def test_title(self, name, variant, expected):
        self.assertEqual(studies.find(name).title(variant), expected)

    def test_what_linear_maps_and_gated_functions_are(self):
        linear, gated = studies.find("linear_map"), studies.find("gated_functions")
        task = config_fields.from_mapping(linear.task, {"kind": "low-rank", "map_rank": 2})
        self.assertIn("of sparse inputs", linear.description(task))
        self.assertIn("W a random matrix of rank 2", linear.description(task))
        task = config_fields.from_mapping(gated.task, {"num_functions": 3, "neurons": 7})
        self.assertIn("of 3 gated functions", gated.description(task))
        self.assertIn("which 7 neurons compute", gated.description(task))
        for study in (linear, gated):
            self.assertTrue(all(study.thresholds(variant) for variant in study.variants))
            self.assertIn(study.main_figure, study.captions)
            self.assertEqual(set(study.figures), set(study.captions))

    @parameterized.parameters(
        ({}, r"with 50 neurons. It is trained to output x \+ ReLU\(x\) for each of 100 sparse"),
        ({"neurons": (25, 30)}, "with 55 neurons"),
        ({"label_kind": "abs"}, r"output \|x\| for"),
        ({"activation": "gelu", "label_seed": 3}, r"x \+ GELU\(c·x\) .+ with c drawn between"),
    )
    def test_what_a_residual_mlp_was_trained_for(self, changes, expected):
        study = studies.find("resid_mlp")
        self.assertRegex(
            study.description(config_fields.from_mapping(study.task, changes)), expected
        )


if __name__ == "__main__":
    absltest.main()
