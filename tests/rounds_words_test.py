"""What a report says about rounds of refinement."""

from absl.testing import absltest

from apd_jax.report import rounds


class RoundsTest(absltest.TestCase):
    def test_new_counts_are_named_at_the_step_of_their_round(self):
        metrics = [
            {"step": 100, "refine/merges": [0, 0], "refine/splits": [0, 0]},
            {"step": 200, "refine/merges": [2, 0], "refine/splits": [1, 0]},
            {"step": 300, "refine/merges": [2, 0], "refine/splits": [1, 0]},
            {"step": 400, "refine/merges": [2, 1], "refine/splits": [3, 0]},
        ]
        self.assertEqual(
            rounds.sentences(metrics),
            [
                "Step 100: 2 merges, 1 split, in 1 of 2 seeds.",
                "Step 300: 1 merge, 2 splits, in 2 of 2 seeds.",
            ],
        )

    def test_one_seed_and_none(self):
        metrics = [{"step": 5, "refine/undone": 0}, {"step": 9, "refine/undone": 1}]
        self.assertEqual(rounds.sentences(metrics), ["Step 5: 1 round undone."])
        self.assertEqual(rounds.sentences([{"step": 5, "loss/total": 1.0}]), [])


if __name__ == "__main__":
    absltest.main()
