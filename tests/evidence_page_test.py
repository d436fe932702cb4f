"""The picture of the evidence, its section in a report, and the control on the command line."""

import evidence_cases as cases
import jax
import markupsafe
import networks
import numpy as np
import pytest
from absl.testing import absltest

import apd_jax
from apd_jax.plotting import evidence_figures, style
from apd_jax.report import evidence_section, parts
from apd_jax.run import experiment
from apd_jax.studies.tms.network import TMSTask


class PageTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        found, x = cases.shares(np.eye(cases.BLOCKS))
        found.components["second"] = apd_jax.Factors(
            found.components["second"].reads, found.components["second"].writes * 1.3
        )
        cls.found = found
        cls.evidence = evidence_section.measure(found, x)

    def test_the_section_names_what_fails(self):
        match = apd_jax.compare_seeds([self.found, self.found])
        made = evidence_section.section(self.evidence, match)
        text = parts.render("evidence.html.j2", **evidence_section.content(made))
        self.assertEqual([panel.name for panel in made.panels], ["evidence", "restarts"])
        self.assertIn("on 96 examples of its own. A row is an example", text)
        self.assertIn("This page has no control", text)
        one_of_many = evidence_section.content(made, examples=300, control="This is a control.")
        text_of_own = parts.render("evidence.html.j2", **one_of_many)
        self.assertIn("on the first 96 of the 300 examples of this report", text_of_own)
        self.assertIn("This is a control.", text_of_own)
        for verdict in self.evidence.verdicts:
            self.assertIn(f'<span class="name">{verdict.name}</span>', text)
            self.assertIn(str(markupsafe.escape(verdict.meaning)), text)
        self.assertEqual(text.count("> FAIL<"), len(self.evidence.failed))
        self.assertIn("a share of the squared weights missing at second", text)
        self.assertIn("singular vectors: own mask", text)

    @pytest.mark.slow
    def test_a_page_without_evidence_has_no_section(self):
        self.assertEqual(parts.render("evidence.html.j2", evidence=None).strip(), "")

    @pytest.mark.slow
    def test_the_picture_shows_every_distance(self):
        figure = evidence_figures.distances(self.evidence)
        (axes,) = figure.axes
        shown = [text.get_text().replace("\n", " ") for text in axes.get_yticklabels()]
        self.assertIn("adversarial, one mask for all, 20 steps", shown)
        self.assertIn("pooled over 64 rows", shown)
        self.assertLen(shown, 10)
        (limits,) = [line for line in axes.lines if line.get_label() == "limit"]
        np.testing.assert_allclose(limits.get_xdata()[0], 0.1 * self.evidence.scale)
        self.assertLen(limits.get_xdata(), 8)
        self.assertTrue(style.is_ours(style.to_png(figure, dpi=50)))

    @pytest.mark.slow
    def test_a_report_takes_few_examples(self):
        self.assertEqual(self.evidence.num_examples, 96)
        self.assertEqual(self.evidence.adversary.steps, (20,))


class ControlTest(absltest.TestCase):
    def test_shuffled_targets_keep_their_values(self):
        seeds = np.arange(2, dtype=np.uint32)
        targets = jax.vmap(lambda seed: networks.tms(1))(seeds)
        moved = experiment.shuffle(targets, seeds)
        before_all, after_all = (jax.vmap(lambda t: t.weights)(t) for t in (targets, moved))
        for name, weights in before_all.items():
            after = after_all[name]
            for before, one in zip(weights, after, strict=True):
                np.testing.assert_array_equal(np.sort(before, axis=None), np.sort(one, axis=None))
                self.assertFalse(np.array_equal(before, one))
            self.assertFalse(np.array_equal(after[0], after[1]))
        np.testing.assert_array_equal(moved.params["b_final"], targets.params["b_final"])

    def test_it_is_a_flag_of_every_study(self):
        self.assertFalse(TMSTask().shuffled)
        self.assertTrue(TMSTask(shuffled=True).shuffled)


if __name__ == "__main__":
    absltest.main()
