"""Words of the report."""

import report_example
from absl.testing import absltest, parameterized

from apd_jax.report import words


class WordsTest(parameterized.TestCase):
    def test_how_names_what_the_config_says(self):
        config = report_example.results()["config"] | {"learning_rate": 1e-3, "schedule": "cosine"}
        text = words.how(config)
        for part in ("6 parameter components", "rank at most 3", "2,000 steps", "512 fresh inputs"):
            self.assertIn(part, text)
        self.assertIn("learning rate of 0.001 (cosine schedule)", text)
        self.assertIn("3 seeds", text)

    def test_how_of_an_empty_config(self):
        self.assertEqual(
            words.how({}), "Its weights were written as a sum of parameter components."
        )
        self.assertNotIn("loss =", words.objective({}))
        self.assertNotIn("independent", words.objective({"coefficients": {"partial": 0.0}}))

    def test_what_is_relative_and_what_is_trained_on(self):
        config = {"relative_losses": True, "coefficients": {"partial": 0.3}}
        text = words.objective(config)
        relative = "loss = 0.3 × partial. Each loss is divided by its value without any component"
        self.assertIn(relative, text)
        self.assertIn("is no independent check of this run", text)
        sizes = {"steps": 2, "batch_size": 3, "learning_rate": 0.1, "relative_rate": True}
        self.assertIn("0.1 times the root mean square of each factor.", words.how(sizes))
        where = "Adam, in the eigenvectors of the gradients of every matrix, at a learning rate"
        self.assertIn(where, words.how(sizes | {"eigenbasis": True}))
        self.assertNotIn("eigenvectors", words.how(sizes | {"eigenbasis": False}))

    @parameterized.parameters(
        ("batch", "0.2 per input on average"),
        ("sample", "0.2 of them"),
        ("exact", "as many as there are active inputs"),
    )
    def test_objective(self, selection, expected):
        config = report_example.results()["config"] | {"selection": selection}
        text = words.objective(config)
        self.assertIn(expected, text)
        self.assertIn("loss = faithfulness + minimality + 0.7 × simplicity.", text)
        self.assertIn("(computed on the target)", text)

    def test_the_component_that_is_always_on(self):
        config = report_example.results()["config"] | {"selection": "batch"}
        self.assertNotIn("always on", words.objective(config))
        text = words.objective(config | {"distil": True})
        self.assertIn("on average. The last component is always on and not counted.", text)

    def test_controls_are_called_so(self):
        for config in ({}, {"target": None}, {"target": {"shuffled": False}}):
            self.assertEqual(words.control("TMS", config), "TMS")
        title = "TMS: a control, its matrices shuffled"
        self.assertEqual(words.control("TMS", {"target": {"shuffled": True}}), title)

    @parameterized.parameters("activation", "ablation")
    def test_attributions_without_derivatives(self, method):
        config = report_example.results()["config"] | {"attribution": method}
        self.assertIn(f"largest attributions (by {method})", words.objective(config))

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
        self.assertEqual(words.solved({"config": {"seed": 7}, "seeds": seeds}), expected)


if __name__ == "__main__":
    absltest.main()
