"""Runs whose truth is known: solved or not, reported either way."""

import json
import pathlib
import sys
import tempfile
from unittest import mock

import pytest
from absl.testing import absltest, parameterized

from apd_jax import studies
from apd_jax.run import experiment

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "configs"))
import gated_functions  # noqa: E402
import linear_map  # noqa: E402
import tms  # noqa: E402


class RunTest(parameterized.TestCase):
    def _run(self, config, evidence_samples=0):
        config.evidence_samples = evidence_samples
        config.chunk_steps, config.evaluation_samples = config.steps // 2, 2000
        config.checkpoint_every, config.tensorboard = config.steps, False
        workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "run"
        results = experiment.run(config, workdir)
        page = (workdir / "report.html").read_text()
        study = studies.find(config.name)
        self.assertIn(study.title(config.variant), page)
        for title, _ in study.captions.values():
            self.assertIn(title, page)
        self.assertIn("Components", page)
        written = json.loads((workdir / "results.json").read_text())
        self.assertEqual(written, json.loads(json.dumps(results)))
        drawn = {path.name for path in (workdir / "figures").iterdir()}
        place = "_seed_0" if config.seeds > 1 else ""
        expected = {f"{name}{place}.png" for name in study.captions}
        self.assertContainsSubset(expected, drawn)
        return results

    def test_unknown_variants(self):
        for module in (gated_functions, linear_map):
            with self.assertRaisesRegex(ValueError, "unknown variant 'big'"):
                module.get_config("big")

    @pytest.mark.slow
    def test_two_gated_functions(self):
        config = gated_functions.get_config("small")
        config.seeds = 2
        results = self._run(config, evidence_samples=256)
        self.assertEqual([seed["solved"] for seed in results["seeds"]], [True, True])
        self.assertTrue(all(verdict["passed"] for verdict in results["verdicts"]))

    @pytest.mark.slow
    def test_features_through_an_identity(self):
        (seed,) = self._run(self._identity())["seeds"]
        self.assertTrue(seed["solved"])
        self.assertBetween(seed["ml2r"], 0.95, 1.05)
        with mock.patch.object(experiment, "publish") as publish:  # one report is enough
            experiment.run(self._identity(hidden_uses="all"), tempfile.mkdtemp())
        (other,) = publish.call_args.args[3]
        self.assertLess(other["mmcs"], seed["mmcs"])

    def _identity(self, **changes):
        config = tms.get_config("5-2-id-robust")
        config.target.steps = 1500
        config.update(steps=400, evaluation_samples=2000, tensorboard=False, **changes)
        return config

    @pytest.mark.slow
    def test_gated_functions_from_a_random_start_fail_and_are_reported(self):
        config = gated_functions.get_config("small")
        config.start, config.steps = "random", 20
        results = self._run(config)
        self.assertFalse(results["seeds"][0]["solved"])
        self.assertFalse(all(verdict["passed"] for verdict in results["verdicts"]))

    @parameterized.parameters("identity-sparse", "orthogonal-gaussian", "low-rank-sparse")
    @pytest.mark.slow
    def test_linear_maps(self, variant):
        config = linear_map.get_config(variant)
        config.steps = 60
        results = self._run(config)
        self.assertIn("effective_rank", results["seeds"][0])


if __name__ == "__main__":
    absltest.main()
