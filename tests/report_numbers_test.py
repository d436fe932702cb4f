"""Numbers of the report as text."""

import math

import numpy as np
from absl.testing import absltest, parameterized

from apd_jax.report import numbers


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
    def test_number(self, value, expected):
        self.assertEqual(numbers.number(value), expected)

    @parameterized.parameters((1234.6, "1,235"), (99999.5, "100,000"), (0.12345, "0.123"))
    def test_three_digits(self, value, expected):
        self.assertEqual(numbers.number(value, 3), expected)

    @parameterized.parameters((1e-5, "1e−5"), (1.2e-4, "1.2e−4"), (0.99, "0.99"), (95, "95"))
    def test_threshold(self, value, expected):
        self.assertEqual(numbers.threshold(value), expected)

    @parameterized.parameters(
        (0.9981, 0.99, "0.9981"),
        (0.98996, 0.99, "0.98996"),
        (0.99, 0.99, "0.99"),
        (1.0001e-5, 1e-5, "1.0001e−5"),
        (0.99 - 1e-16, 0.99, "0.9899999999999999"),
        (math.nan, 0.99, "NaN"),
    )
    def test_value_never_rounds_onto_its_threshold(self, value, threshold, expected):
        self.assertEqual(numbers.against(value, threshold), expected)

    @parameterized.parameters(
        (8.41, "8.41 s"),
        (59.99, "60 s"),
        (60, "1 min 00 s"),
        (171.2, "2 min 51 s"),
        (7500, "2 h 05 min"),
    )
    def test_seconds(self, seconds, expected):
        self.assertEqual(numbers.seconds(seconds), expected)


if __name__ == "__main__":
    absltest.main()
