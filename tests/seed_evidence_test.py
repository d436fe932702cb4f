"""The evidence of every seed of a study: numbers of all seeds, and what a failure costs."""

import json
import math
import pathlib
import sys
import tempfile
import types
from unittest import mock

import jax
import pytest
from absl.testing import absltest

import apd_jax
from apd_jax.components import init_components
from apd_jax.errors import UserError
from apd_jax.report import page, parts
from apd_jax.run import publish, seed_evidence
from apd_jax.run.setup import make_setup
from apd_jax.runtime import preemption
from apd_jax.runtime.outcome import Stopped
from apd_jax.studies.verdicts import Threshold

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "configs"))
import tms  # noqa: E402


def tiny(**changes):
    """A setup of two seeds of TMS, and decompositions that were not trained."""
    config = tms.get_config("5-2")
    config.update({"seeds": 2, "batch_size": 32, "evidence_samples": 64, "evidence_steps": (2,)})
    config.update_from_flattened_dict(changes)
    setup = make_setup(config)
    found = []
    for seed in setup.seeds.tolist():
        key = jax.random.key(seed)
        target = setup.task.target(setup.task.init(key))
        components = init_components(key, target, num_components=5, rank=2)
        found.append(apd_jax.Decomposition(target, components, setup.settings))
    return setup, found


class SeedEvidenceTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.setup, cls.decompositions = tiny()
        with jax.log_compiles(), cls().assertLogs("jax", "WARNING") as logs:
            cls.measured = seed_evidence.measure(cls.setup, cls.decompositions)
        cls.compiled = [line for line in logs.output if "Finished XLA compilation" in line]

    @pytest.mark.slow
    def test_a_stop_is_no_failure(self):
        answers = iter([False, False, True])
        report = Stopped(40, "report")
        with preemption.watch(lambda: next(answers), report), self.assertRaises(Stopped):
            seed_evidence.measure(self.setup, self.decompositions)

    def test_numbers_of_every_seed_in_rows_and_summary(self):
        rows = self.measured.numbers()
        self.assertEqual(list(rows[0]), list(rows[1]))
        for name in ("own", "own_se", "adversarial_2", "svd_own", "bundled_adversarial_2", "l0"):
            self.assertIn(f"evidence_{name}", rows[0])
        self.assertNotEqual(rows[0]["evidence_own"], rows[1]["evidence_own"])
        self.assertEqual(rows[0]["evidence_own"], self.measured.found[0]["own"])
        summary = self.measured.summary()
        self.assertEqual(summary["evidence_seeds"], 2)
        mean = (rows[0]["evidence_own"] + rows[1]["evidence_own"]) / 2
        self.assertAlmostEqual(summary["evidence_own_mean"], mean)

    def test_limits_are_those_of_the_config(self):
        own = self.measured.found[0]["own"] / self.measured.found[0].scale
        verdicts = []
        for limit in (2 * own, own / 2):
            setup, found = tiny(seeds=1, **{"evidence_limits.own": limit})
            (evidence,) = seed_evidence.measure(setup, found).found
            verdicts.append({verdict.name: verdict for verdict in evidence.verdicts}["own mask"])
        self.assertEqual([verdict.passed for verdict in verdicts], [True, False])
        with self.assertRaisesRegex(UserError, "limit own must be a number of at least 0, got -1"):
            tiny(**{"evidence_limits.own": -1.0})

    def test_seeds_share_compiled_programs(self):
        self.assertEqual(self.measured.found[0].num_examples, 64)
        for name in ("score", "of_weights", "term_scores", "shared_gradient"):
            count = sum(f"jit({name})" in line for line in self.compiled)
            self.assertLessEqual(count, 2, name)  # singular vectors and columns have other shapes
        count = sum("jit(ascend)" in line for line in self.compiled)
        self.assertLessEqual(count, 3)

    @pytest.mark.slow
    def test_a_failure_costs_one_seed_its_evidence(self):
        measure = apd_jax.Decomposition.evidence

        def fails_once(decomposition, *arguments, **options):
            if decomposition is self.decompositions[0]:
                raise MemoryError("no room")
            return measure(decomposition, *arguments, **options)

        patched = mock.patch.object(apd_jax.Decomposition, "evidence", fails_once)
        with patched, self.assertLogs():
            measured = seed_evidence.measure(self.setup, self.decompositions)
        self.assertIsNone(measured.found[0])
        rows = measured.numbers()
        self.assertTrue(math.isnan(rows[0]["evidence_own"]))
        self.assertEqual(rows[1]["evidence_own"], self.measured.found[1]["own"])
        self.assertEqual(
            measured.failures, ["The evidence of seed 0 could not be measured: no room"]
        )
        self.assertEqual(measured.summary()["evidence_seeds"], 1)
        self.assertEqual(measured.summary()["evidence_own_mean"], rows[1]["evidence_own"])
        self.assertEqual(measured.verdicts([0, 1])["0"], {"passed": 0, "failed": ["not measured"]})
        section, content = publish._evidence(self.setup, measured, 0, None)
        text = parts.render("evidence.html.j2", **content)
        self.assertIn("no room", text)
        self.assertIn("those of seed 1", text)
        self.assertRegex(text, "[01] of 2 seeds pass, 1 not measured")
        self.assertIs(section.found, measured.found[1])

    def test_results_are_json_without_nan(self):
        numbers = {"a": [math.nan, 1.0, {"b": -math.inf}], "c": (2, True, "NaN")}
        self.assertEqual(
            publish._with_nulls(numbers), {"a": [None, 1.0, {"b": None}], "c": [2, True, "NaN"]}
        )
        measured = self.measured._replace(
            found=[None, self.measured.found[1]], failures=["seed 0 failed"]
        )
        published = {one.key: 0.5 for one in self.setup.study.published("5-2")}
        rows = [{"seed": seed, "solved": False} | published for seed in (0, 1)]
        with tempfile.TemporaryDirectory() as directory:
            paths = types.SimpleNamespace(results=pathlib.Path(directory) / "results.json")
            publish._write_results(paths, self.setup, self.decompositions, rows, {}, measured)

            def refuse(name):
                raise AssertionError(name)

            text = paths.results.read_text()
            found = json.loads(text, parse_constant=refuse)
        self.assertIsNone(found["seeds"][0]["evidence_own"])
        self.assertEqual(found["summary"]["evidence_seeds"], 1)
        self.assertEqual(found["evidence_verdicts"]["0"]["failed"], ["not measured"])

    def test_thresholds_of_a_study_can_be_about_the_evidence(self):
        threshold = Threshold("evidence_own_mean", ">=", 0.0, "There is a distance")
        published = {one.key: 0.5 for one in self.setup.study.published("5-2")}
        rows = [{"seed": seed, "solved": False} | published for seed in (0, 1)]
        with (
            tempfile.TemporaryDirectory() as directory,
            mock.patch.object(type(self.setup.study), "thresholds", lambda *_: [threshold]),
        ):
            paths = types.SimpleNamespace(results=pathlib.Path(directory) / "results.json")
            results = publish._write_results(
                paths, self.setup, self.decompositions, rows, {}, self.measured
            )
        (verdict,) = results["verdicts"]
        self.assertEqual(verdict["value"], self.measured.summary()["evidence_own_mean"])
        self.assertTrue(verdict["passed"])

    @pytest.mark.slow
    def test_a_study_says_how_many_examples(self):
        asked = {}

        def seen(_, x, labels, **options):
            asked.update(options, examples=len(x))
            return self.measured.found[0]

        with mock.patch.object(apd_jax.Decomposition, "evidence", seen):
            seed_evidence.measure(self.setup, self.decompositions)
        limits = self.setup.config.evidence_limits
        expected = {"examples": 64, "adversary_steps": (2,), "draws": 2, "limits": limits}
        self.assertEqual(asked, expected)

    def test_the_section_is_of_one_seed_and_counts_all(self):
        section, content = publish._evidence(self.setup, self.measured, 1, None)
        text = parts.render("evidence.html.j2", **content)
        self.assertIn("those of seed 1", text)
        self.assertRegex(text, "[012] of 2 seeds pass")
        self.assertIn("All seeds", text)
        self.assertEqual([panel.name for panel in section.panels], ["evidence"])

    def test_none_is_asked_for(self):
        setup, found = tiny(evidence_samples=0)
        measured = seed_evidence.measure(setup, found)
        self.assertEqual(measured.numbers(), [{}, {}])
        _, content = publish._evidence(setup, measured, 0, None)
        self.assertEqual(parts.render("evidence.html.j2", **content).strip(), "")

    def test_the_table_of_seeds_leaves_it_to_its_section(self):
        seeds = [{"seed": 0, "solved": True, "mmcs": 0.9} | self.measured.numbers()[0]]
        results = {"seeds": seeds, "summary": {}, "config": {}}
        table = page._seed_table(results, {})
        self.assertEqual([name for name, _ in table["columns"]], ["mmcs"])


if __name__ == "__main__":
    absltest.main()
