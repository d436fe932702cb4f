"""Words and number formats of the report."""

import math

import numpy as np
import report_example
from absl.testing import absltest, parameterized

from apd_jax import report_text


class NumbersTest(parameterized.TestCase):
    @parameterized.parameters(
        (None, "–"),
        (True, "yes"),
        (False, "no"),
        (0, "0"),
        (0.0, "0"),
        (2048, "2,048"),
        (1_500_000, "1,500,000"),
        (5.0, "5"),
        (0.99812, "0.9981"),
        (-0.25, "−0.25"),
        (12345.6, "12,346"),
        (2.7e-6, "2.70e−6"),
        (-2.7e-6, "−2.70e−6"),
        (2.5e7, "2.50e7"),
        (math.nan, "NaN"),
        (-math.inf, "−∞"),
        ("0.998 ± 0.000", "0.998 ± 0.000"),
        (np.float64(0.5), "0.5"),
    )
    def test_format_number(self, value, expected):
        self.assertEqual(report_text.format_number(value), expected)

    @parameterized.parameters((1e-5, "1e−5"), (1.2e-4, "1.2e−4"), (0.99, "0.99"), (95, "95"))
    def test_format_threshold(self, value, expected):
        self.assertEqual(report_text.format_threshold(value), expected)

    @parameterized.parameters(
        (0.9981, 0.99, "0.9981"),
        (0.98996, 0.99, "0.98996"),
        (0.99, 0.99, "0.99"),
        (1.0001e-5, 1e-5, "1.0001e−5"),
        (0.99 - 1e-16, 0.99, "0.9899999999999999"),
        (math.nan, 0.99, "NaN"),
    )
    def test_value_never_rounds_onto_its_threshold(self, value, threshold, expected):
        self.assertEqual(report_text.format_against(value, threshold), expected)

    @parameterized.parameters(
        (8.41, "8.41 s"),
        (59.99, "60 s"),
        (60, "1 min 00 s"),
        (171.2, "2 min 51 s"),
        (7500, "2 h 05 min"),
    )
    def test_format_seconds(self, seconds, expected):
        self.assertEqual(report_text.format_seconds(seconds), expected)


class WordsTest(parameterized.TestCase):
    @parameterized.parameters(
        ("tms", "5-2", "Toy model of superposition 5-2"),
        ("resid_mlp", "1", "Residual MLP, 1 layer"),
        ("resid_mlp", "2", "Residual MLP, 2 layers"),
        ("gated_functions", "", "Hand-coded gated functions"),
        ("mine", "x", "mine x"),
    )
    def test_title(self, name, variant, expected):
        self.assertEqual(report_text.title({"name": name, "variant": variant}), expected)

    def test_how_names_what_the_config_says(self):
        config = report_example.results()["config"] | {"learning_rate": 1e-3, "schedule": "cosine"}
        text = report_text.how(config)
        for part in ("6 parameter components", "rank at most 3", "2,000 steps", "512 fresh inputs"):
            self.assertIn(part, text)
        self.assertIn("learning rate of 0.001 (cosine schedule)", text)
        self.assertIn("3 seeds", text)

    def test_how_of_an_empty_config(self):
        self.assertEqual(
            report_text.how({}), "Its weights were written as a sum of parameter components."
        )
        self.assertNotIn("loss =", report_text.objective({}))

    @parameterized.parameters(
        ("batch", "0.2 per input on average"),
        ("sample", "0.2 of them"),
        ("exact", "as many as inputs are active"),
    )
    def test_objective(self, selection, expected):
        config = report_example.results()["config"] | {"selection": selection}
        text = report_text.objective(config)
        self.assertIn(expected, text)
        self.assertIn("loss = faithfulness + minimality + 0.7 × simplicity.", text)
        self.assertIn("(those of the target)", text)

    @parameterized.parameters(
        ([True], "The one seed solved it."),
        ([False], "The one seed did not solve it."),
        ([True, True], "All 2 seeds solved it."),
        ([False, False], "None of the 2 seeds solved it."),
        ([True, False, False], "1 of 3 seeds solved it; not solved by seeds 8, 9."),
        ([None], ""),
    )
    def test_solved(self, flags, expected):
        seeds = [{} if flag is None else {"solved": flag} for flag in flags]
        self.assertEqual(report_text.solved({"config": {"seed": 7}, "seeds": seeds}), expected)


if __name__ == "__main__":
    absltest.main()
