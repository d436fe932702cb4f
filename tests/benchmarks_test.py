"""The benchmarks, at sizes where they measure nothing: `benchmarks/` is not installed."""

import argparse
import json
import pathlib
import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from apd_jax.runtime import loop
from apd_jax.training.step import train_step
from apd_jax.training.trainer import Trainer
from benchmarks import (
    against_reference,
    against_spd,
    problem,
    process,
    run,
    scaling,
    stages,
    tables,
    transformer,
    work,
)

TINY = {"seeds": 2, "batch_size": 32, "num_components": 6}
STAGE = {"seconds": 0.01, "spread": 0.001, "operations": 1e9, "bytes": 1e6}
POINTS = [{"value": v, "seconds": v / 1e3, "peak_memory": 5e8} for v in (50, 100)]
AGAINST = {
    "seconds_per_step": {"ours": 0.001, "theirs": 0.01},
    "ratio": 10.0,
    "ratios": [9.0, 10.0, 11.0],
    "peak_memory": {"ours": 4e8, "theirs": 6e8},
    "libraries_memory": {"ours": 2e8, "theirs": 3e8},
    "memory_ratio": 1.5,
}
RESULTS = {
    "steps.json": {
        "rates": {"operations_per_second": 2e11, "bytes_per_second": 1e10},
        "configs": {
            "tms:5-2": {
                "compile_seconds": 3.21,
                "peak_memory": 4.5e8,
                "seconds_per_step": [0.01, 0.012, 0.011],
                "stages": {"selection": STAGE},
                "routes": {"attributions": {"forward": STAGE, "literal": STAGE}},
            }
        },
    },
    "reference.json": {"configs": {"tms:5-2": AGAINST}},
    "spd.json": {"configs": {"ss_gpt2_simple_config, float32": AGAINST}},
    "scaling.json": {"sweeps": [{"title": "Components", "letter": "C", "points": POINTS}]},
    "transformer.json": {
        "sweeps": [
            {
                "title": "Layers",
                "letter": "L",
                "points": [point | {"compile_seconds": 12.0} for point in POINTS],
            }
        ]
    },
}


class WorkTest(absltest.TestCase):
    def test_counts_products_and_arrays(self):
        a, b, unused = jnp.ones((3, 4)), jnp.ones((4, 5)), jnp.ones(100)
        counted = work.count(lambda a, b, unused: a @ b, a, b, unused)
        self.assertEqual(counted, work.Work(2 * 3 * 4 * 5, 4 * (12 + 20 + 15)))

    def test_batches_and_loops(self):
        def repeated(a):
            return jax.lax.scan(lambda x, _: (x @ a, None), a, length=7)[0]

        a = jnp.ones((6, 3, 3))
        self.assertEqual(work.count(jax.vmap(repeated), a).operations, 6 * 7 * 2 * 27)

    def test_loops_of_unknown_length_count_once(self):
        def unknown(a):
            return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ a, a)

        self.assertEqual(work.count(unknown, jnp.ones((3, 3))).operations, 2 * 27)

    def test_of_branches_the_least_counts(self):
        def either(a):
            return jax.lax.cond(a[0, 0] > 0, lambda: a @ a, lambda: a @ a @ a)

        self.assertEqual(work.count(either, jnp.ones((3, 3))).operations, 2 * 27)

    def test_floor_is_the_slower_of_products_and_memory(self):
        self.assertEqual(work.least_seconds(8, 2, 4, 2), 2)
        self.assertEqual(work.least_seconds(8, 6, 4, 2), 3)


class StagesTest(absltest.TestCase):
    @pytest.mark.slow
    def test_stages_make_up_a_step(self):
        self._check_stages("resid_mlp:1", {"target.d_resid": 20, "rank": 3})

    @pytest.mark.slow
    def test_stages_make_up_a_step_with_other_choices(self):
        self._check_stages("tms:5-2", {"masked_route": "grouped"})

    def _check_stages(self, name, overrides):
        setup = problem.find_setup(name, TINY | overrides)
        targets = problem.train_targets(setup, steps=0)
        trainer = Trainer(setup.settings, targets, setup.task.inputs, setup.seeds)
        states = trainer.init_state()
        objective = setup.settings.objective
        optimizer = trainer.optimizer
        steps = stages.make_stages(setup.settings, setup.task.inputs)

        @jax.jit
        def both(target, seed, state):
            values = {"target": target, "seed": seed, "state": state}
            values["components"] = state.components
            for stage in steps.values():
                values |= stage(values)
            x = values["x"]
            expected, metrics = train_step(objective, optimizer, target, state, x)
            moments = (
                optax.tree.get(values["state"].optimizer, "mu"),
                optax.tree.get(expected.optimizer, "mu"),
            )
            return moments, (values["gradient_norm"], metrics["gradient_norm"])

        (actual, expected), norms = both(*loop.pick((targets, setup.seeds, states), 0))
        np.testing.assert_allclose(*norms, rtol=1e-4)
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max()))

    def test_times_and_counts_stages(self):
        def double(values):
            return {"y": 2 * values["y"]}

        def multiply(values):
            return {"z": values["y"] @ values["y"]}

        measured = stages.measure(
            {"double": double, "multiply": multiply},
            {"y": jnp.ones((2, 8, 8))},
            shares_pass=False,
            seconds=1e-4,
        )
        self.assertEqual(set(measured), {"double", "multiply"})
        self.assertEqual(measured["multiply"]["operations"], 2 * 2 * 8**3)
        self.assertGreaterEqual(measured["double"]["seconds"], 0)


class WorkerTest(absltest.TestCase):
    @pytest.mark.slow
    def test_measures_steps_in_a_process_of_its_own(self):
        request = {
            "config": "tms:5-2",
            "overrides": TINY,
            "target_steps": 0,
            "warm": 0,
            "chunk": 2,
        }
        with process.worker(run.WORKER, request) as asked:
            answer = asked.ask({"do": "run", "steps": 3})
            self.assertLen(answer["seconds_per_step"], 2)
            self.assertGreater(answer["peak_memory"], asked.ready["libraries_memory"])
            self.assertEqual(asked.ready["config"]["num_components"], 6)
            with self.assertRaisesRegex(RuntimeError, "KeyError"):
                asked.ask({"do": "nothing"})

    def test_enough(self):
        self.assertTrue(process.enough([1.0, 1.0], {"steps": 2, "seconds": 9}))
        self.assertFalse(process.enough([1.0, 1.0], {"steps": None, "seconds": 3}))
        self.assertFalse(process.enough([], {"seconds": 0}))

    def test_unknown_config(self):
        with self.assertRaisesRegex(ValueError, "tms:6-2"):
            problem.find_setup("tms:6-2", {})


class ReferenceTest(absltest.TestCase):
    @pytest.mark.slow
    def test_translates_a_config(self):
        setup = problem.find_setup("resid_mlp:2", {})
        request = against_reference.translate(setup.config.flags())
        spd = request["spd"]
        self.assertEqual((spd["C"], spd["m"], spd["topk"], spd["lr"]), (200, None, 1.28, 1e-3))
        self.assertEqual((spd["topk_recon_coeff"], spd["schatten_coeff"]), (2.0, 7.0))
        self.assertEqual(request["model"]["neurons"], (25, 25))

    def test_terms_without_weight_are_off(self):
        setup = problem.find_setup("tms:5-2", {})
        request = against_reference.translate(setup.config.flags())
        self.assertIsNone(request["spd"]["act_recon_coeff"])
        self.assertEqual(request["model"]["instances"], 12)


class SpdTest(absltest.TestCase):
    def _request(self, name):
        checkout = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        folder = checkout / against_spd.FOLDER
        folder.mkdir(parents=True)
        (folder / "small.yaml").touch()
        args = argparse.Namespace(
            spd=checkout, sizes={"components": 50, "rank": 3}, threads=2, warm=1
        )
        return against_spd.request(name, "float32", "cpu", args)

    def test_asks_for_as_many_terms_as_all_components_have(self):
        request = self._request("small")
        self.assertEqual(request["subcomponents"], 150)
        self.assertEqual(request["sizes"]["layers"], transformer.Sizes().layers)

    def test_names_the_files_there_are(self):
        with self.assertRaisesRegex(FileNotFoundError, "large.yaml does not exist.*: small"):
            self._request("large")


class TransformerTest(absltest.TestCase):
    @pytest.mark.slow
    def test_measures_a_small_one(self):
        sizes = transformer.Sizes(
            layers=1, positions=5, components=9, batch=2, width=8, heads=2, vocabulary=11, rank=2
        )
        measured = transformer.measure(sizes, steps=1)
        self.assertEqual(measured["sites"], 6)
        self.assertTrue(np.isfinite(measured["loss"]))
        self.assertGreater(measured["seconds_per_step"], 0)


class TablesTest(parameterized.TestCase):
    @parameterized.parameters(*tables.TABLES)
    def test_rows_are_as_long_as_the_header(self, name):
        file, make = tables.TABLES[name]
        lines = [line for line in make(RESULTS[file]).splitlines() if line.startswith("|")]
        self.assertGreater(len(lines), 2)
        self.assertLen({line.count("|") for line in lines}, 1)

    def test_numbers(self):
        self.assertIn("| `tms:5-2` | 11 ms | ± 500 µs | 3.2 s | 450 MB |", self._table("steps"))
        self.assertIn("| 5 ms | 11 ms | 2.2 |", self._table("floors"))
        self.assertIn("| 1 ms | 10 ms | **10.0x** |", self._table("reference"))
        self.assertIn("| 100 | 100 ms | 1.00 | 500 MB |", self._table("scaling"))
        self.assertIn("| 100 | 100 ms | 1.00 | 500 MB | 12 s |", self._table("transformer"))

    def _table(self, name):
        file, make = tables.TABLES[name]
        return make(RESULTS[file])

    def test_fills_a_page_again_and_again(self):
        results = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        (results / "scaling.json").write_text(json.dumps(RESULTS["scaling.json"]))
        untouched = "<!-- table: steps -->x<!-- end -->"
        page = f"a\n<!-- table: scaling -->\nold\n<!-- end -->\nb\n{untouched}"
        once = tables.fill(page, results)
        self.assertNotIn("old", once)
        self.assertIn("100 ms", once)
        self.assertIn(untouched, once)
        self.assertEqual(tables.fill(once, results), once)

    def test_unknown_table(self):
        with self.assertRaisesRegex(ValueError, "'sizes'"):
            tables.fill("<!-- table: sizes --><!-- end -->", process.ROOT)

    def test_page_has_every_table(self):
        marks = re.findall(r"<!-- table: (\w+) -->", tables.PAGE.read_text())
        self.assertCountEqual(marks, tables.TABLES)

    def test_plot(self):
        (axis,) = scaling.plot(RESULTS["scaling.json"]).axes
        proportional, measured = axis.lines
        np.testing.assert_allclose(measured.get_ydata(), [50, 100])
        np.testing.assert_allclose(proportional.get_ydata(), [50, 100])


if __name__ == "__main__":
    absltest.main()
