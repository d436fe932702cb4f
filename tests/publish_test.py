"""What a run leaves on disk: the files, the keys of results.json, a page with every figure."""

import json
import pathlib
import sys
import tempfile
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.run import experiment, publish
from apd_jax.studies.resid_mlp.network import ResidualMLP
from apd_jax.studies.tms.network import TMS

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "configs"))
import resid_mlp  # noqa: E402
import tms  # noqa: E402

COMMON = {"seed", "faithfulness_mse", "topk_mse", "solved", "target_loss"}
KEYS = {
    "tms": {"mmcs", "ml2r", "features_recovered"},
    "resid_mlp": {
        "scrubbed_mse",
        "antiscrubbed_mse",
        "random_mse",
        "monosemantic_mse",
        "zero_mse",
        "contribution_cosine",
        "features_represented",
        "dead",
        "monosemantic",
        "duosemantic",
        "polysemantic",
        "single_component_features",
        "two_component_features",
        "monosemantic_over_target",
    },
}
SIZES = {
    "steps": 30,
    "batch_size": 32,
    "chunk_steps": 10,
    "evaluation_samples": 256,
    "evidence_samples": 64,
}


def shrink(config, **changes):
    config.update(SIZES)
    config.target.update(steps=20, batch_size=32)
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.slow
class WorkdirTest(parameterized.TestCase):
    def run_config(self, config):
        root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        results = experiment.run(config, root, command="python -m apd_jax.main")
        written = json.loads((root / "results.json").read_text())
        self.assertEqual(written, json.loads(json.dumps(results)))
        return root, results

    def test_target_that_is_not_trained(self):
        with mock.patch.object(publish, "_draw", return_value=[]):
            root, results = self.run_config(
                shrink(tms.get_config(), evidence_samples=0, **{"target.steps": 0})
            )
        self.assertEqual(results["seconds"]["target"], 0)
        self.assertGreater(results["seeds"][0]["target_loss"], 0)
        self.assertFalse((root / "target").exists())
        self.assertIn("was not trained in this run", (root / "report.html").read_text())

    def check_files(self, root, steps, evidence):
        for name in ("config.json", "results.json", "report.html", "checkpoints", "target"):
            self.assertTrue((root / name).exists(), name)
        self.assertNotEmpty(list(root.rglob("events.out.tfevents*")))
        rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
        self.assertEqual([row["step"] for row in rows], list(range(10, steps + 1, 10)))
        self.assertNotEmpty((root / "target" / "metrics.jsonl").read_text())
        page = (root / "report.html").read_text()
        self.assertIn("<html", page)
        self.assertNotIn('src="http', page)
        self.assertEqual('<section id="evidence">' in page, evidence)
        self.assertEqual((root / "figures" / "evidence.png").exists(), evidence)
        figures = sorted((root / "figures").glob("*.png"))
        self.assertNotEmpty(figures)
        for figure in figures:
            self.assertEqual(figure.read_bytes()[:4], b"\x89PNG")
        return rows

    def check_results(self, results, name, seeds):
        parts = {"config", "versions", "seconds", "seeds", "summary", "verdicts", "comparison"}
        self.assertContainsSubset(parts, results)
        self.assertEqual(set(results["seconds"]), {"target", "decompose", "evaluate", "evidence"})
        self.assertEqual([row["seed"] for row in results["seeds"]], seeds)
        for row in results["seeds"]:
            self.assertContainsSubset(COMMON | KEYS[name], row)
            self.assertTrue(np.isfinite([float(value) for value in row.values()]).all())
        for key in KEYS[name]:
            values = [row[key] for row in results["seeds"]]
            self.assertAlmostEqual(results["summary"][f"{key}_mean"], np.mean(values))
            self.assertAlmostEqual(results["summary"][f"{key}_std"], np.std(values))
        solved = [row["solved"] for row in results["seeds"]]
        self.assertEqual(results["summary"]["solve_rate"], np.mean(solved))

    def test_two_seeds_of_tms(self):
        root, results = self.run_config(shrink(tms.get_config("5-2-id"), seeds=2, seed=4))
        rows = self.check_files(root, 30, evidence=True)
        self.assertLen(rows[0]["loss/total"], 2)
        self.check_results(results, "tms", [4, 5])
        self.assertNotEqual(results["seeds"][0]["mmcs"], results["seeds"][1]["mmcs"])
        for line in ("own", "adversarial_20", "svd_own", "neurons_random", "faithfulness_worst"):
            self.assertIn(f"evidence_{line}", results["seeds"][0])
            self.assertIn(f"evidence_{line}_mean", results["summary"])
        names = {path.name for path in (root / "figures").iterdir()}
        self.assertContainsSubset({"components_seed_4.png", "components_seed_5.png"}, names)
        for seed in (4, 5):
            loaded = apd_jax.load(root / "components" / f"seed_{seed}", TMS(5, 2, 1))
            self.assertEqual(loaded.settings.num_components, 5)

    def test_residual_mlp(self):
        config = shrink(
            resid_mlp.get_config("1"),
            num_components=12,
            evidence_samples=0,
            **{"target.num_features": 8, "target.d_resid": 20, "target.neurons": (4,)},
        )
        root, results = self.run_config(config)
        self.check_files(root, 30, evidence=False)
        self.check_results(results, "resid_mlp", [0])
        module = ResidualMLP(8, 20, (4,))
        loaded = apd_jax.load(root / "components" / "seed_0", module)
        x = np.eye(8, dtype=np.float32)
        self.assertEqual(loaded(x).shape, (8, 8))


if __name__ == "__main__":
    absltest.main()
