"""Training curves: where points, gaps and ticks end up."""

import math

import numpy as np
from absl.testing import absltest, parameterized

from apd_jax.report import curves


class CurvesTest(parameterized.TestCase):
    def test_log_axis_places_decades_evenly(self):
        records = [{"step": s, "loss/total": [10.0**-s]} for s in range(5)]
        (chart,) = curves.charts(records)
        self.assertTrue(chart.log)
        heights = np.diff([y for (y,) in zip(*chart.y, strict=True)])
        np.testing.assert_allclose(heights, heights[0], atol=0.2)
        self.assertGreater(heights[0], 0)  # downwards on the page
        self.assertEqual(
            [label for _, label in chart.y_ticks], ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "10⁰"]
        )

    def test_one_line_a_seed_in_the_order_asked_for(self):
        records = [{"step": s, "b": [1.0, 2.0], "a": 3.0} for s in (1, 2)]
        first, second = curves.charts(records, order=("a", "unknown"))
        self.assertEqual((first.key, len(first.lines)), ("a", 1))
        self.assertEqual((second.key, [line.seed for line in second.lines]), ("b", [0, 1]))

    def test_points_that_cannot_be_shown_are_gaps(self):
        values = [1.0, math.nan, 0.5, 0.0, None, 0.25]
        records = [{"step": s, "loss/x": [value]} for s, value in enumerate(values)]
        (chart,) = curves.charts(records)
        drawn = [y is not None for y in chart.y[0]]
        self.assertEqual(drawn, [True, False, True, False, False, True])
        self.assertEqual(chart.lines[0].path.count("M"), 3)
        self.assertEqual(chart.values[0][3], 0.0)

    def test_metric_without_a_number_is_left_out(self):
        self.assertEqual(curves.charts([{"step": 1, "loss/x": [math.nan]}, {"step": 2}]), [])
        self.assertEqual(curves.charts([]), [])

    def test_all_zero_loss_gets_a_linear_axis(self):
        (chart,) = curves.charts([{"step": s, "loss/x": [0.0]} for s in (1, 2)])
        self.assertFalse(chart.log)

    @parameterized.parameters(1e-9, 1.0, 123.0)
    def test_constant_curve_stays_inside(self, value):
        for key in ("loss/x", "active_components"):
            (chart,) = curves.charts([{"step": s, key: [value]} for s in (1, 2)])
            for y in chart.y[0]:
                self.assertBetween(y, 0, curves.HEIGHT)
            self.assertNotEmpty(chart.y_ticks)

    def test_long_runs_are_thinned_and_keep_the_last_record(self):
        records = [{"step": s, "loss/x": [1.0 / s]} for s in range(1, 2002)]
        (chart,) = curves.charts(records)
        self.assertEqual(chart.thinned, 9)
        self.assertLessEqual(len(chart.steps), 241)
        self.assertEqual((chart.steps[0], chart.steps[-1]), (1, 2001))

    def test_a_step_that_appears_twice_counts_once(self):
        records = [{"step": 2, "x": 1.0}, {"step": 1, "x": 0.0}, {"step": 2, "x": 5.0}]
        (chart,) = curves.charts(records)
        self.assertEqual((chart.steps, chart.values), ([1, 2], [[0.0, 5.0]]))


if __name__ == "__main__":
    absltest.main()
