"""A run as a whole: what is refused before training, and what a finished one does."""

import json
import os
import pathlib
import shutil
import sys
import tempfile
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from stop_flags import FlagAfter

from apd_jax.decomposition.result import Decomposition
from apd_jax.errors import UserError
from apd_jax.plotting import style
from apd_jax.run import experiment
from apd_jax.runtime import loop, preemption
from apd_jax.runtime.checkpoint import Checkpointer, to_host
from apd_jax.runtime.outcome import Diverged
from apd_jax.runtime.workdir import Workdir, WorkdirError, WorkdirMismatch
from apd_jax.studies import pretraining
from apd_jax.training.trainer import Trainer

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "configs"))
import resid_mlp  # noqa: E402
import tms  # noqa: E402


def small_config(**changes):
    config = tms.get_config()
    config.update(steps=40, batch_size=32, chunk_steps=10, checkpoint_every=20)
    config.update(evaluation_samples=256, evidence_samples=0)
    config.target.update(steps=20, batch_size=32)
    config.update_from_flattened_dict(changes)
    return config


class ExperimentTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.workdir = self.root / "run"

    def run_config(self, flag=None, **changes):
        return experiment.run(small_config(**changes), self.workdir, command="me", flag=flag)

    def assert_untouched(self):
        self.assertFalse((self.workdir / "target").exists())


class Trained(ExperimentTestCase):
    """Runs whose results nobody looks at."""

    def setUp(self):
        super().setUp()
        self.enterContext(mock.patch.object(experiment, "evaluate", return_value=([], [])))
        self.enterContext(mock.patch.object(experiment, "publish"))


class RefusedTest(Trained):
    def test_other_config(self):
        with Workdir(self.workdir) as workdir:
            workdir.claim(small_config().to_dict())
        with self.assertRaises(WorkdirMismatch) as caught:
            self.run_config(**{"steps": 60, "target.steps": 30, "max_to_keep": 7})
        lines = str(caught.exception).splitlines()
        self.assertEqual(lines[1:-1], ["  steps: 40 -> 60", "  target.steps: 20 -> 30"])
        self.assert_untouched()

    def test_second_at_once(self):
        with Workdir(self.workdir), self.assertRaisesRegex(WorkdirError, f"process {os.getpid()}"):
            self.run_config()
        self.assert_untouched()

    def test_directory_of_nobody_knows_what(self):
        (self.workdir / "checkpoints").mkdir(parents=True)
        with self.assertRaisesRegex(WorkdirError, "config.json is missing: put it back"):
            self.run_config()

    def test_read_only(self):
        self.workdir.mkdir()
        if os.geteuid() == 0:  # nothing is read-only to a superuser
            self.root.chmod(0o755)
            os.seteuid(65534)
            self.addCleanup(os.seteuid, 0)
        else:
            self.workdir.chmod(0o500)
        with self.assertRaisesRegex(WorkdirError, "written to .Permission denied.*another workdir"):
            self.run_config()
        self.assert_untouched()

    def test_wandb_without_wandb(self):
        with (
            mock.patch.dict(sys.modules, wandb=None),
            self.assertRaisesRegex(UserError, r"'mine', but .* pip install apd_jax\[wandb\]"),
        ):
            self.run_config(**{"wandb.project": "mine"})
        self.assertFalse(self.workdir.exists())

    @parameterized.parameters(
        ("variant", "nope", "nope"),
        ("steps", 0, "steps must be at least 1, got 0"),
        ("target.steps", -1, "target: steps must be at least 0, got -1"),
        ("topk", 0.01, "k=0.01 selects nothing"),
        ("topk", 9.0, "topk must be at most num_components"),
        ("rank", 0, "rank must be at least 1"),
        ("num_components", 0, "num_components must be at least 1, got 0"),
        ("target.probability", 1.5, "probability"),
        ("coefficients.simplicity", -1.0, "simplicity must not be negative, got -1"),
        ("warmup_fraction", 1.0, "warmup_fraction"),
        ("checkpoint_every", 0, "checkpoint_every must be at least 1, got 0"),
    )
    def test_field_out_of_range(self, name, value, message):
        with self.assertRaisesRegex(ValueError, message):
            self.run_config(**{name: value})
        self.assertFalse(self.workdir.exists())


@pytest.mark.slow
class DivergedTest(Trained):
    @parameterized.parameters(
        ("learning_rate", "decomposition", "."), ("target.learning_rate", "target", "target")
    )
    def test_names_what_broke_and_what_is_good(self, field, name, place):
        directory = self.workdir / place / "checkpoints"
        with self.assertRaisesRegex(
            Diverged,
            f"^{name}: loss.* stopped being finite at step .*(last good checkpoint|No checkpoint)",
        ):
            self.run_config(**{field: 1e30, "checkpoint_every": 10, "warmup_fraction": 0.0})
        with Checkpointer(directory) as checkpointer:
            for step in checkpointer.steps():
                for leaf in jax.tree.leaves(checkpointer.restore_latest(None).state):
                    self.assertTrue(np.isfinite(leaf).all(), step)
        self.assertFalse((self.workdir / "components").exists())


class GoesOnTest(Trained):
    @pytest.mark.slow
    def test_stopped_twice(self):
        """Target and decomposition of two seeds end as those of a run that is left alone."""
        for name, looks, step in (("target", 1, 10), ("decomposition", 5, 30)):
            with self.assertRaisesRegex(loop.Stopped, f"^{name} stopped at step {step}$"):
                self.run_config(FlagAfter(looks), seeds=2)
        self.run_config(seeds=2)
        first = experiment.publish.call_args.args[2]
        self.workdir = self.root / "alone"
        self.run_config(seeds=2)
        second = experiment.publish.call_args.args[2]
        for one, other in zip(first, second, strict=True):
            jax.tree.map(
                np.testing.assert_array_equal,
                to_host((one.components, one.target.params)),
                to_host((other.components, other.target.params)),
            )

    def test_free_fields_may_change(self):
        with Workdir(self.workdir) as workdir:
            workdir.claim(small_config().to_dict())
        with (
            mock.patch.object(experiment, "train_targets", side_effect=loop.Stopped(0)),
            self.assertRaises(loop.Stopped),
        ):
            self.run_config(checkpoint_every=5, max_to_keep=1, tensorboard=False)


class EvaluationTest(ExperimentTestCase):
    @parameterized.parameters(
        (tms, {}, 1), (tms, {}, 7), (resid_mlp, {"num_components": 7}, 1), (resid_mlp, {}, 5)
    )
    @pytest.mark.slow
    def test_asked_to_stop(self, study, changes, looks):
        """Between batches, whatever is measured: a run is told again after a few of them."""
        config = study.get_config()
        config.update(steps=40, batch_size=8, evaluation_samples=10**9)
        if study is resid_mlp:
            config.target.update(num_features=5, d_resid=6, neurons=(4,))
        config.update_from_flattened_dict(changes)
        setup = experiment.make_setup(config)
        params = pretraining.init_params(setup.task, setup.seeds)
        targets = jax.vmap(setup.task.target)(params)
        trainer = Trainer(setup.settings, targets, setup.task.inputs, setup.seeds)
        components = trainer.init_state().components
        decomposition = Decomposition(
            loop.pick(targets, 0), loop.pick(components, 0), setup.settings
        )
        flag = FlagAfter(looks)
        with (
            mock.patch.object(pretraining, "final_loss", return_value=np.zeros(1)),
            preemption.watch(flag.asked, loop.Stopped(40, "evaluation")),
            self.assertRaisesRegex(loop.Stopped, "evaluation stopped at step 40"),
        ):
            experiment.evaluate(setup, targets, [decomposition])
        self.assertEqual(flag.looks, -1)

    def test_asked_to_stop_between_figures(self):
        flag, made = FlagAfter(2), []
        makers = {name: lambda name=name: made.append(name) for name in "abcd"}
        report = loop.Stopped(40, "report")
        with preemption.watch(flag.asked, report), self.assertRaises(loop.Stopped):
            style.make_figures(makers, None)
        self.assertEqual(made, ["a", "b"])
        preemption.stop_if_asked()


@pytest.mark.slow
class FinishedTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.original = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory())) / "a[1]"
        cls.results = experiment.run(small_config(), cls.original)

    def setUp(self):
        super().setUp()
        root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.workdir = root / "b \\[*]\udcff"
        shutil.copytree(self.original, self.workdir)

    def rebuild(self):
        """Results of the same command again, which must not train, and what it says."""
        with (
            mock.patch.object(loop, "run_steps", side_effect=AssertionError("trained again")),
            self.assertLogs("absl", "INFO") as logs,
        ):
            results = experiment.run(small_config(), self.workdir, command="me \udcff")
        return results, logs.output

    def files(self):
        """Contents of all files by name, but for those that orbax draws at random."""
        paths = (path for path in self.workdir.rglob("*") if path.parent.name != "d")
        return {path: path.read_bytes() for path in paths if path.is_file()}

    def test_shows_the_same_again(self):
        before = self.files()
        for name in ("results.json", "report.html"):
            (self.workdir / name).unlink()
        (self.workdir / "figures" / "components.png").rename(self.workdir / "figures" / "old.png")
        results, log = self.rebuild()
        self.assertIn("target: all 20 steps are done", log[0])
        self.assertIn("decomposition: all 40 steps are done", log[1])
        untimed = {"seconds": None}
        self.assertGreater(results["seconds"]["evaluate"], 0)
        self.assertEqual(results | untimed, self.results | untimed)
        self.assertEqual(self.files().keys(), before.keys())
        written = json.loads((self.workdir / "results.json").read_text())
        self.assertEqual(written["seeds"], self.results["seeds"])

    def test_files_of_others_stay(self):
        names = ["figures/holiday.png", "figures/notes.txt", "notes.md", "checkpoints/.DS_Store"]
        names += ["components/.DS_Store", "components/seed_0/.DS_Store", "components/seed_0/a/b"]
        names += ["components/x.tmp-1/y", "target/checkpoints/a", "tensorboard/mine", "figures/.a"]
        mine = {self.workdir / name: name.encode() for name in names}
        for path, content in mine.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        self.rebuild()
        self.assertEqual(self.files() | mine, self.files())

    def test_metrics_cut_short_or_missing(self):
        """Both files are cut short, then each is missing."""
        paths = [self.workdir / name for name in ("metrics.jsonl", "target/metrics.jsonl")]
        for path in paths:
            path.write_bytes(path.read_bytes()[:-9])
        self.check_said(*(f"[^t]/{path.relative_to(self.workdir)} lacks 1 of" for path in paths))
        for path in paths:
            content = path.read_bytes()
            path.unlink()
            self.check_said(f"[^t]/{path.relative_to(self.workdir)} cannot be read")
            path.write_bytes(content)

    def check_said(self, *gaps):
        """The log and a page with the other curves name what is missing from the metrics."""
        (self.workdir / "report.html").write_text("stale")
        _, log = self.rebuild()
        page = (self.workdir / "report.html").read_text()
        for gap in gaps:
            self.assertRegex("\n".join(log), f"WARNING.*{gap}")
            self.assertRegex(page, gap)
        self.assertIn('<svg viewBox="0 0 ', page)

    def test_other_by_products(self):
        """All are damaged together: a run that reads one of them fails."""
        for name in ("tensorboard", "figures", "components", "results.json", "report.html"):
            path = self.workdir / name
            for file in path.rglob("*") if path.is_dir() else [path]:
                if file.is_file():
                    file.write_bytes(file.read_bytes()[:-3])
        results, _ = self.rebuild()
        self.assertEqual(results["seeds"], self.results["seeds"])
        self.assertIn("</html>", (self.workdir / "report.html").read_text())


if __name__ == "__main__":
    absltest.main()
