"""Names of metrics and their groups."""

from absl.testing import absltest

from apd_jax.runtime import metric_names


class MetricNamesTest(absltest.TestCase):
    def test_losses_are_a_group_and_not_a_word_in_the_name(self):
        metrics = {"loss/total": 1, "loss/simplicity": 2, "target/loss": 3, "lossless": 4}
        self.assertEqual(metric_names.losses(metrics), {"total": 1, "simplicity": 2})


if __name__ == "__main__":
    absltest.main()
