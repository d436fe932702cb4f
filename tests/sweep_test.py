"""Sweeps: grids, trainings side by side with numbers of their own, and whole sweeps."""

import pathlib
import shutil
import sys
import tempfile
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from stop_flags import FlagAfter

from apd_jax.data import as_source
from apd_jax.errors import UserError
from apd_jax.objective import selection
from apd_jax.run import experiment, publish, sweep
from apd_jax.run.grid import points, read_grid
from apd_jax.run.setup import read_setup
from apd_jax.runtime import loop
from apd_jax.runtime.checkpoint import Checkpointer, to_host
from apd_jax.studies import pretraining
from apd_jax.training import trainer
from apd_jax.training.side_by_side import Family, SideBySide, shared
from apd_jax.training.trainer import Trainer

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "configs"))
import tms  # noqa: E402


def small_config(variant="5-2", **changes):
    config = tms.get_config(variant)
    config.update(steps=40, batch_size=32, chunk_steps=10, checkpoint_every=20, seeds=2)
    config.update(evaluation_samples=256, evidence_samples=0, tensorboard=False)
    config.target.update(steps=20, batch_size=32)
    config.update_from_flattened_dict(changes)
    return config


class GridTest(parameterized.TestCase):
    def test_reads_values_of_the_fields_own_types(self):
        texts = ["simplicity=0.3,1", "steps=5,10", "unit_norm=true,false", "rank=none,2"]
        grid = read_grid(small_config(), [*texts, "schedule=cosine,linear", "refine.every=0,0.1"])
        self.assertEqual(grid["coefficients.simplicity"], (0.3, 1.0))
        self.assertEqual(grid["steps"], (5, 10))
        self.assertEqual(grid["unit_norm"], (True, False))
        self.assertEqual(grid["rank"], (None, 2))
        self.assertLen(points(grid), 64)
        self.assertEqual(
            points({"coefficients.simplicity": (0.3,), "topk": (1.0, 2.0)})[1].name,
            "simplicity=0.3,topk=2.0",
        )

    @parameterized.parameters(
        ([], "at least one field"),
        (["simplicity"], "got 'simplicity'"),
        (["topk="], "got 'topk='"),
        (["simplicty=1"], "no field 'simplicty'; did you mean"),
        (["steps=1.5"], "values of steps must be whole numbers, got '1.5'"),
        (["topk=a"], "values of topk must be numbers, got 'a'"),
        (["steps=none"], "steps must be whole numbers, got 'none'"),
        (["unit_norm=maybe"], "must be true or false"),
        (["topk=1,1.0"], "topk has the value 1.0 twice"),
        (["topk=1", "topk=2"], "topk is given twice"),
        (["simplicity=1", "coefficients.simplicity=2"], "coefficients.simplicity is given twice"),
        (["seeds=1,2"], "seeds cannot be swept"),
        (["checkpoint_every=1,2"], "does not change results"),
        (["wandb.name=a,b"], "does not change results"),
    )
    def test_refuses(self, texts, message):
        with self.assertRaisesRegex(UserError, message):
            read_grid(small_config(), texts)

    def test_refuses_a_point_before_any_file(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "sweep"
            with self.assertRaisesRegex(UserError, "^topk=9.0: topk must be at most"):
                sweep.run(small_config(), {"topk": (0.3, 9.0)}, path)
            self.assertFalse((path / "config.json").exists())


class DivergedTest(absltest.TestCase):
    @pytest.mark.slow
    def test_runs_again_only_if_its_directory_was_deleted(self):
        root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        waiting = []

        def train(family, pairs, donors, flag, diverged):
            waiting.append([place.path.name for _, place in pairs])
            for index in range(len(pairs)):
                diverged(index, "loss/total stopped being finite at step 3")

        self.enterContext(mock.patch.object(sweep.family, "train", train))
        for _ in range(2):
            sweep.run(small_config(), {"topk": (0.3, 0.5)}, root)
        shutil.rmtree(root / "topk=0.3")
        sweep.run(small_config(), {"topk": (0.3, 0.5)}, root)
        self.assertEqual(waiting, [["topk=0.3", "topk=0.5"], ["topk=0.3"]])


@jax.jit
def with_products(scores, whole, real, factor):
    """The selections of all k and of a part of k, by one program for every k up to 2."""
    products = selection.Products(2.0, whole, real)
    whole_k = selection.batch_topk(scores, products)
    return whole_k, selection.batch_topk(scores, products, None, factor)


class ProductsTest(parameterized.TestCase):
    @parameterized.parameters(0.29, 0.5, 1.0, 1.7)
    def test_selects_as_k_itself(self, k):
        """Also where k·B is no whole number in float64, and rounds to one in float32."""
        scores, factor = jax.random.normal(jax.random.key(0), (100, 3)), jnp.float32(0.3)
        products = selection.Products.of(k, 150, largest=2.0)
        found, part = with_products(scores, products.whole, products.real, factor)

        @jax.jit
        def with_k(scores, factor):
            return selection.batch_topk(scores, k), selection.batch_topk(scores, k, None, factor)

        expected, other = with_k(scores, factor)
        np.testing.assert_array_equal(found.mask, expected.mask)
        self.assertLen(found.pairs[0], 200)
        np.testing.assert_array_equal(found.counts(), expected.counts())
        np.testing.assert_array_equal(part.mask, other.mask)


class SideBySideTest(parameterized.TestCase):
    @pytest.mark.slow
    def test_equals_each_on_its_own(self):
        both = {"schedules.topk": "0:1 1:0.5", "accumulate": 2}
        second = {"topk": 0.5, "schatten_p": 0.8, "init_scale": 2.0, "learning_rate": 1e-3}
        self.check_equal("5-2", both, second)

    @pytest.mark.slow
    def test_equals_each_on_its_own_with_rounds(self):
        both = {"refine.every": 10.0, "refine.ramp": 5, "refine.batch_size": 64}
        second = {"coefficients.simplicity": 3.0, "topk": 0.3, "refine.merge_cosine": 0.8}
        self.check_equal("5-2-robust", both, second)

    def check_equal(self, variant, both, second):
        setups = [read_setup(small_config(variant, **both, **own)) for own in ({}, second)]
        setup = setups[0]
        params = pretraining.init_params(setup.task, setup.seeds)
        targets = jax.vmap(setup.task.target)(params)
        own = [Trainer(p.settings, targets, setup.task.inputs, setup.seeds) for p in setups]
        settings = [p.settings for p in setups]
        family = Family(settings, as_source(setup.task.inputs), loop.pick(targets, 0))
        self.assertCountEqual(family.names, second)
        together = SideBySide(family, own)

        def train(training):
            return loop.run_steps(training, training.init_state(), chunk_steps=20, steps=20)

        beside = to_host(train(together)._replace(optimizer=None))
        for place, alone in enumerate(own):
            one = slice(place * len(setup.seeds), (place + 1) * len(setup.seeds))
            part = jax.tree.map(lambda leaf, one=one: leaf[one], beside)
            expected = to_host(train(alone)._replace(optimizer=None))
            chex.assert_trees_all_close(part, expected, rtol=1e-4, atol=1e-5)

    def test_what_changes_shapes_is_another_family(self):
        base = read_setup(small_config()).settings
        same = {"coefficients.simplicity": 3.0, "topk": 0.5, "learning_rate": 1.0, "lp_p": 0.5}
        other = {"coefficients.simplicity": 0.0, "topk": None, "rank": 2, "schedule": "linear"}
        for name, value in same.items():
            changed = read_setup(small_config(**{name: value})).settings
            self.assertEqual(shared(changed), shared(base), name)
        changes = [{"coefficients.simplicity": 0.0}, {"rank": 2}, {"selection": "exact"}]
        for change in [*changes, {"schedule": other["schedule"]}]:
            changed = read_setup(small_config(**change)).settings
            self.assertNotEqual(shared(changed), shared(base), change)


@pytest.mark.slow
class SweepTest(absltest.TestCase):
    def test_stopped_resumed_and_equal_to_a_single_run(self):
        root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        grid = {"coefficients.simplicity": (0.3, 0.7), "learning_rate": (0.01, 1e30)}
        with (
            mock.patch.object(trainer, "make_step", wraps=trainer.make_step) as made,
            self.assertRaisesRegex(loop.Stopped, "decomposition stopped at step 30"),
        ):
            sweep.run(small_config(), grid, root / "sweep", flag=FlagAfter(8))
        rates = [call.args[0].learning_rate for call in made.call_args_list]
        traced = [rate for rate in rates if isinstance(rate, jax.core.Tracer)]
        self.assertLen(traced, 2)  # one program for all, one for those that did not diverge

        # publish_test.py and experiment_test.py have the figures of runs.
        self.enterContext(mock.patch.object(publish, "_draw", return_value=[]))
        with self.assertLogs("absl", "INFO") as logs:
            results = sweep.run(small_config(), grid, root / "sweep", arguments=["--config=c"])
        self.assertIn("2 runs from step 30 in 1 group(s)", "\n".join(logs.output))
        states = {run["name"]: run["state"] for run in results["runs"]}
        one = "simplicity=0.3,learning_rate=0.01"
        self.assertEqual(states[one], "done")
        self.assertEqual(states["simplicity=0.7,learning_rate=1e+30"], "diverged")
        self.assertCountEqual(states.values(), ["done", "done", "diverged", "diverged"])
        page = (root / "sweep" / "report.html").read_text()
        self.assertIn("stopped being finite", page)
        self.assertEqual(page.count("data:image/png"), 2)
        command = "python -m apd_jax.main --config=c --config.seeds=2 --config.coefficients.simpl"
        report = (root / "sweep" / one / "report.html").read_text()
        self.assertIn(command, report.replace("<span>", "").replace("</span>", ""))

        alone = small_config(**{"coefficients.simplicity": 0.3, "learning_rate": 0.01})
        with mock.patch.object(experiment, "publish"):
            experiment.run(alone, root / "alone")
        found = [self.checkpoint(root / name) for name in ("alone", f"sweep/{one}")]
        chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-6)
        with self.assertRaisesRegex(UserError, "another config .*\n  grid"):
            sweep.run(small_config(), {"topk": (0.3,)}, root / "sweep")

    def checkpoint(self, path):
        with Checkpointer(path / "checkpoints") as checkpointer:
            return checkpointer.restore_latest(None).state["components"]


if __name__ == "__main__":
    absltest.main()
