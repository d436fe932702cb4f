"""Decompositions that end early: nothing that was trained is lost."""

import dataclasses
import errno
import functools
import itertools
import json
import os
import pathlib
import pkgutil
import signal
import subprocess
import sys
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.decomposition import auto_topk, directory
from apd_jax.evaluation import seen
from apd_jax.evaluation.evidence import run as evidence_run
from apd_jax.runtime import loop, preemption, session
from apd_jax.runtime import workdir as workdir_module
from apd_jax.runtime.checkpoint import CheckpointError

X = np.asarray(networks.normal(5, 32, 3))
OPTIONS = {
    "num_components": 3,
    "topk": 1.0,
    "rank": 1,
    "steps": 20,
    "batch_size": 8,
    "chunk_steps": 2,
    "checkpoint_every": 4,
    "refine": {"every": 0},
    "relative_losses": False,
    "coefficients": {"simplicity": 0.0},
}


def decompose(data=X, **options):
    return apd_jax.decompose(networks.mlp(), data, **(OPTIONS | options))


@functools.cache
def whole():
    """What a decomposition that nothing ends early finds."""
    return decompose()


@functools.cache
def stopped(at):
    """What one that is stopped after a step hands back."""
    return decompose(observer=StopAt(at))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.components, b.components)


_TWO_DEVICES = "--xla_force_host_platform_device_count=2"

SCRIPT = """
import os, signal
import numpy as np
import apd_jax
from apd_jax.runtime import loop

class Terminate(loop.Observer):
    def on_metrics(self, step, metrics):
        os.kill(os.getpid(), signal.SIGTERM)

x = np.random.default_rng(0).standard_normal((64, 3)).astype("f4")
target = apd_jax.Target(lambda p, x: x @ p["w"], {"w": x[:3]})
settings = dict(num_components=3, topk=1.0, rank=1, steps=400, chunk_steps=2, batch_size=8)
settings |= dict(refine={"every": 0}, relative_losses=False)
found = apd_jax.decompose(target, x, observer=Terminate(), restarts=3, **settings)
assert found.history[-1]["step"] < 400
print(f"first, with {len(found.losses)} losses")
apd_jax.decompose(target, x, **settings)
print("second")
"""


class SendAt(loop.Observer):
    """Sends this process a signal at a step."""

    def __init__(self, step, number):
        self._step, self._number = step, number

    def on_metrics(self, step, metrics):
        if step == self._step:
            os.kill(os.getpid(), self._number)


class EndingsTestCase(parameterized.TestCase):
    writes_reports = True

    def setUp(self):
        super().setUp()
        self.workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "run"
        if not self.writes_reports:  # they take seconds to compile
            self.enterContext(mock.patch.object(directory, "_write_report"))


class DivergedTest(EndingsTestCase):
    writes_reports = False

    @pytest.mark.slow
    def test_hands_back_the_last_finite_state(self):
        """From step 10 on the learning rate grows beyond all bounds."""
        explodes = {"schedule": "0:1 0.5:1 0.6:1e38", "learning_rate": 0.01, "warmup_fraction": 0}
        expected = decompose(**explodes, observer=StopAt(12))
        for workdir in (None, self.workdir):
            with self.assertRaisesRegex(apd_jax.Diverged, "last good .*12") as caught:
                decompose(**explodes, workdir=workdir)
            found = caught.exception.decomposition
            self.assertEqual(found.history[-1]["step"], 12)
            for leaf in jax.tree.leaves(found.components):
                self.assertTrue(np.isfinite(leaf).all())
            self.assertEqual(found(X[:8]).shape, (8, 2))
            same(found, expected)

    @pytest.mark.slow
    def test_before_anything_was_kept(self):
        with self.assertRaisesRegex(apd_jax.Diverged, "No state had been kept") as caught:
            decompose(learning_rate=1e38, relative_rate=False, warmup_fraction=0)
        self.assertIsNone(caught.exception.decomposition)


class StopAt(loop.Observer):
    """Requests a stop after a step."""

    def __init__(self, step):
        self._left = step // OPTIONS["chunk_steps"]

    def should_stop(self):
        self._left -= 1
        return not self._left


class Batches:
    """Batches that can be iterated again, of which one can't be read."""

    def __init__(self, fails_at=None):
        self._fails_at = fails_at

    def __iter__(self):
        for step in range(30):
            if step == self._fails_at:
                raise OSError("the shard is gone")
            yield np.random.default_rng(step).standard_normal((8, 3)).astype("f4")


class DataFailedTest(EndingsTestCase):
    writes_reports = False

    @pytest.mark.slow
    def test_keeps_what_is_done_and_resumes(self):
        with self.assertRaisesRegex(apd_jax.DataFailed, "the shard is gone") as caught:
            decompose(Batches(fails_at=13), workdir=self.workdir)
        part = caught.exception.decomposition
        self.assertBetween(part.history[-1]["step"], 6, 12)
        same(decompose(Batches(), workdir=self.workdir), decompose(Batches()))

    @pytest.mark.slow
    def test_data_that_end(self):
        with self.assertRaisesRegex(apd_jax.DataFailed, "the data ended after 14") as caught:
            decompose(iter([X[:8]] * 14), restarts=2)
        self.assertLen(caught.exception.decomposition.losses, 2)

    @pytest.mark.slow
    def test_in_a_round_of_refinement(self):
        rounds = {"refine": {"every": 6, "ramp": 2, "merge_cosine": 0.05}, "workdir": self.workdir}
        with self.assertRaisesRegex(apd_jax.DataFailed, "after step 6 .*the shard") as caught:
            decompose(Batches(fails_at=13), **rounds)
        self.assertEqual(caught.exception.decomposition.history[-1]["step"], 6)
        found = decompose(Batches(), **rounds)
        self.assertGreater(sum(found.moves.values()), 0)
        same(found, decompose(Batches(), **rounds | {"workdir": None}))

    @pytest.mark.slow
    def test_restarts_are_compared_although_all_reading_fails(self):
        class Gone:
            """An iterator that goes on raising."""

            def __init__(self):
                self._batches = iter(Batches(fails_at=13))

            def __iter__(self):
                return self

            def __next__(self):
                try:
                    return next(self._batches)
                except StopIteration:
                    raise OSError("the shard is gone") from None

        with (
            self.assertLogs("absl", "WARNING") as logs,
            self.assertRaises(apd_jax.DataFailed) as caught,
        ):
            decompose(Gone(), restarts=2)
        self.assertLen(caught.exception.decomposition.losses, 2)
        self.assertRegex(
            " ".join(logs.output),
            "compared, or gates limited, on the last batches .*the shard is gone",
        )

    @parameterized.parameters(1, 2)
    @pytest.mark.slow
    def test_a_callback_of_the_sampling_function(self, restarts):
        calls = []

        def read(rows):
            calls.append(rows)
            if len(calls) > 20:
                raise OSError("the shard is gone")
            return X[np.asarray(rows)]

        def sample(key, batch_size):
            rows = jax.random.randint(key, (batch_size,), 0, len(X))
            shape = jax.ShapeDtypeStruct((batch_size, 3), jnp.float32)
            return jax.pure_callback(read, shape, rows, vmap_method="sequential")

        with self.assertRaisesRegex(apd_jax.DataFailed, "raised .*the shard is gone") as caught:
            decompose(sample, restarts=restarts)
        part = caught.exception.decomposition
        self.assertIn(part.history[-1]["step"], (4, 8, 12, 16))
        self.assertLen(part.losses, restarts if restarts > 1 else 0)

    def test_before_the_first_step_it_is_an_error_of_the_data(self):
        with self.assertRaisesRegex(apd_jax.UserError, "the data ended after 1 batches") as caught:
            decompose(iter([X[:8]]))
        self.assertNotIsInstance(caught.exception, apd_jax.DataFailed)


class ObserverTest(EndingsTestCase):
    writes_reports = False

    """An observer that raises ends the training; what was trained is kept."""

    @parameterized.product(where=["on_metrics", "save", "should_stop"], directory=[False, True])
    @pytest.mark.slow
    def test_keeps_what_is_done(self, where, directory):
        class Broken(loop.Observer):
            pass

        def fail(_, *arguments):
            if not arguments or arguments[0] >= 8:
                raise ConnectionError("the tracker is gone")

        setattr(Broken, where, fail)
        workdir = self.workdir if directory else None
        with self.assertRaisesRegex(ConnectionError, "tracker is gone") as caught:
            decompose(observer=Broken(), workdir=workdir)
        step = caught.exception.decomposition.history[-1]["step"]
        self.assertIn(step, (2,) if where == "should_stop" else (8, 10, 12))
        self.assertIn(f"training ended after step {step}", caught.exception.__notes__[0])
        if directory:
            same(decompose(workdir=workdir), whole())

    @parameterized.parameters("on_metrics", "save")
    @pytest.mark.slow
    def test_keeps_what_is_done_at_the_end_of_the_script(self, where):
        class Leaving(loop.Observer):
            pass

        def leave(_, step, *arguments):
            if step >= 4:
                sys.exit("enough")

        setattr(Leaving, where, leave)
        with self.assertRaisesRegex(SystemExit, "enough") as caught:
            decompose(observer=Leaving(), workdir=self.workdir, steps=8)
        step = caught.exception.decomposition.history[-1]["step"]
        self.assertIn(step, (4, 6))
        self.assertIn(f"training ended after step {step}", caught.exception.__notes__[0])
        same(decompose(workdir=self.workdir, steps=8), decompose(steps=8))

    @pytest.mark.slow
    def test_between_short_trainings_of_the_search_for_k(self):
        asked = [False] * 3 + [ConnectionError("the tracker is gone")]  # in 3 chunks, and after
        observer = mock.Mock(loop.Observer, should_stop=mock.Mock(side_effect=asked))
        with self.assertRaisesRegex(ConnectionError, "tracker is gone") as caught:
            decompose(topk="auto", observer=observer)
        self.assertEqual(caught.exception.decomposition.history[-1]["step"], 5)

    @pytest.mark.slow
    def test_an_answer_that_is_neither_yes_nor_no(self):
        observer = mock.Mock(loop.Observer, should_stop=lambda: np.array([True, False]))
        with self.assertRaisesRegex(ValueError, "ambiguous") as caught:
            decompose(observer=observer)
        self.assertEqual(caught.exception.decomposition.history[-1]["step"], 2)

    def test_keeps_what_is_done_in_memory(self):
        class Leaving(loop.Observer):
            def should_stop(self):
                raise SystemExit(3)

        with self.assertRaises(SystemExit) as caught:
            decompose(observer=Leaving(), steps=8)
        self.assertEqual(caught.exception.code, 3)
        self.assertEqual(caught.exception.decomposition.history[-1]["step"], 2)

    def test_ctrl_c_in_an_observer_ends_at_once(self):
        class Interrupted(loop.Observer):
            def on_metrics(self, step, metrics):
                raise KeyboardInterrupt

        with self.assertRaises(KeyboardInterrupt) as caught:
            decompose(observer=Interrupted(), steps=8)
        self.assertFalse(hasattr(caught.exception, "decomposition"))

    @pytest.mark.slow
    def test_at_the_last_step(self):
        class Broken(loop.Observer):
            def save(self, step, state):
                raise ConnectionError("the tracker is gone")

        with self.assertRaisesRegex(ConnectionError, "tracker is gone") as caught:
            decompose(observer=Broken(), steps=2, checkpoint_every=100)
        same(caught.exception.decomposition, decompose(steps=2))


class SignalsTest(EndingsTestCase):
    writes_reports = False

    @mock.patch.object(preemption._Process, "terminated", False)
    def test_after_sigterm_nothing_further_starts(self):
        part = decompose(observer=SendAt(4, signal.SIGTERM))
        self.assertLess(part.history[-1]["step"], 20)
        with self.assertRaisesRegex(apd_jax.Terminated, "SIGTERM .*rerun the script"):
            decompose(workdir=self.workdir)
        self.assertFalse(self.workdir.exists())

    @pytest.mark.slow
    def test_a_script_ends_with_the_status_of_a_run_to_resume(self):
        found = subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
        )
        self.assertEqual(found.returncode, 75, found.stderr)
        self.assertIn("first, with 3 losses\n", found.stdout)
        self.assertNotIn("second", found.stdout)
        self.assertNotIn("Traceback", found.stderr)
        self.assertIn("no further decomposition is started", found.stderr)

    @mock.patch.object(preemption._Process, "terminated", False)
    @pytest.mark.slow
    def test_the_search_for_k_starts_no_further_training(self):
        look = auto_topk.look

        def killed(*arguments):
            os.kill(os.getpid(), signal.SIGTERM)
            return look(*arguments)

        with (
            mock.patch.object(auto_topk, "look", side_effect=killed),
            mock.patch.object(session, "fit", wraps=session.fit) as fit,
        ):
            part = decompose(topk="auto", steps=40)
        self.assertEqual(fit.call_count, 1)
        self.assertEqual(part.history[-1]["step"], part.settings.steps)
        with self.assertRaises(SystemExit):
            decompose()

    @pytest.mark.slow
    def test_after_sigint_the_next_one_starts(self):
        decompose(observer=SendAt(4, signal.SIGINT))
        self.assertEqual(decompose().history[-1]["step"], 20)


KILLED = """
import os, sys
from unittest import mock
import endings_test

write = "apd_jax.report.decomposition_page.write"
with mock.patch(write, side_effect=lambda *_, **__: os._exit(3)):
    endings_test.decompose(workdir=sys.argv[1])
"""


class FullDiskTest(EndingsTestCase):
    """A directory that can't be written to ends the training; what was trained is handed back."""

    writes_reports = False

    @parameterized.parameters(
        ("checkpoint.checksum.seal", 1, 10),
        ("checkpoint.checksum.seal", 5, 20),
        ("metric_writer.MetricWriter.write", 3, 8),
    )
    @pytest.mark.slow
    def test_keeps_what_is_done(self, function, number, step):
        function, calls = f"apd_jax.runtime.{function}", itertools.count(1)
        write = pkgutil.resolve_name(function)

        def fails(*arguments):
            if next(calls) >= number:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(*arguments)

        with (
            mock.patch(function, fails),
            self.assertRaisesRegex((OSError, CheckpointError), "No space left") as caught,
        ):
            decompose(workdir=self.workdir)
        self.assertIn(f"training ended after step {step}", caught.exception.__notes__[0])
        same(decompose(workdir=self.workdir), whole())
        same(caught.exception.decomposition, whole() if step == 20 else stopped(step))

    @parameterized.parameters("checkpoints", "metrics.jsonl")
    @pytest.mark.slow
    def test_something_else_is_in_its_place(self, name):
        with (
            mock.patch.object(session, "fit", side_effect=ConnectionError),
            self.assertRaises(ConnectionError),
        ):
            decompose(workdir=self.workdir)
        path = self.workdir / name
        path.mkdir() if path.suffix else path.touch()
        with self.assertRaisesRegex((OSError, CheckpointError), "in its pl|in the way") as caught:
            decompose(workdir=self.workdir)
        self.assertIn(str(path), str(caught.exception))


class PublishTest(EndingsTestCase):
    def test_a_report_that_fails_costs_nothing(self):
        with (
            mock.patch("apd_jax.report.decomposition_page.write", side_effect=RuntimeError("font")),
            self.assertLogs("absl", "ERROR") as logs,
        ):
            found = decompose(workdir=self.workdir)
        self.assertIn("The report could not be written", logs.output[0])
        self.assertIn("RuntimeError: font", logs.output[0])
        self.assertFalse((self.workdir / directory.STARTED).exists())
        same(apd_jax.load(self.workdir / "components", networks.mlp_apply), found)

    @pytest.mark.slow
    def test_a_directory_that_takes_no_components(self):
        full = CheckpointError("disk full")
        with (
            mock.patch.object(apd_jax.Decomposition, "save", side_effect=full),
            self.assertRaisesRegex(CheckpointError, "disk full") as raised,
        ):
            decompose(workdir=self.workdir)
        with mock.patch.object(directory, "_write_report") as write:
            same(decompose(workdir=self.workdir), raised.exception.decomposition)
        write.assert_called_once()

    @pytest.mark.slow
    def test_a_report_that_kills_the_process_is_not_tried_again(self):
        """As where memory is short. The same call returns; without the file it tries again."""
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(self.workdir)],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(killed.returncode, 3, killed.stderr)
        started = self.workdir / directory.STARTED
        with mock.patch("apd_jax.report.decomposition_page.write", return_value=[]) as write:
            for _ in range(2):
                with self.assertLogs("absl", "WARNING") as logs:
                    found = decompose(workdir=self.workdir)
                (warning,) = logs.output
                self.assertIn("An earlier call ended while writing the report", warning)
                self.assertIn("call found.report(path, x)", warning)
                self.assertIn(f"delete {started} and rerun", warning)
            write.assert_not_called()
            same(apd_jax.load(self.workdir / "components", networks.mlp_apply), found)
            started.unlink()
            same(decompose(workdir=self.workdir), found)
            write.assert_called_once()
        self.assertFalse(started.exists())

    def test_metrics_that_are_missing_are_reported(self):
        with mock.patch.object(directory, "_write_report") as write:
            decompose(workdir=self.workdir, steps=4)
            self.assertEqual(list(write.call_args.args[-1]), [])
            (self.workdir / "metrics.jsonl").write_text("")
            with self.assertLogs("absl", "WARNING") as logs:
                decompose(workdir=self.workdir, steps=4)
        (gap,) = write.call_args.args[-1]
        self.assertRegex(gap, "metrics.jsonl lacks 2 of 2 rows")
        self.assertIn(gap, logs.output[0])

    @pytest.mark.slow
    def test_a_report_stops_when_asked_to(self):
        """A scheduler kills what goes on, and a report that was killed is not tried again."""
        looked_at = []

        def write(found, *unused, **options):
            os.kill(os.getpid(), signal.SIGINT)
            looked_at.append("before")
            found.see(X)
            looked_at.append("after")

        with (
            mock.patch("apd_jax.report.decomposition_page.write", side_effect=write),
            self.assertLogs("absl", "WARNING") as logs,
        ):
            found = decompose(workdir=self.workdir)
        self.assertEqual(looked_at, ["before"])
        self.assertIn("Stopped before the report was written", logs.output[0])
        self.assertFalse((self.workdir / directory.STARTED).exists())
        same(apd_jax.load(self.workdir / "components", networks.mlp_apply), found)

    def test_what_a_report_measures_can_be_stopped(self):
        run = evidence_run.Run(*[None] * 9)
        with preemption.watch(lambda: True, loop.Stopped(3, "report")):
            for part in (lambda: next(seen.blocks(X, 8)), lambda: run.advance("scores")):
                with self.assertRaises(loop.Stopped):
                    part()

    def test_a_report_that_is_interrupted_is_tried_again(self):
        with (
            mock.patch.object(directory, "_write_report", side_effect=KeyboardInterrupt) as write,
            workdir_module.Workdir(self.workdir) as place,
        ):
            for _ in range(2):
                with self.assertRaises(KeyboardInterrupt):
                    directory.publish(place, mock.Mock(), lambda: X, trained_on=True)
            self.assertEqual(write.call_count, 2)
        self.assertFalse((self.workdir / directory.STARTED).exists())


class NumbersTest(EndingsTestCase):
    writes_reports = False

    @pytest.mark.slow
    def test_numpy_scalars_are_numbers(self):
        numbers = {
            "num_components": np.int64(3),
            "topk": np.float32(1.0),
            "seed": np.int64(2),
            "restarts": np.int32(1),
            "chunk_steps": np.array(2),
            "checkpoint_every": np.uint8(4),
            "rank": jnp.int32(1),
            "schatten_p": np.float64(0.5),
            "coefficients": {"simplicity": np.float32(0.5)},
            "unit_norm": np.bool_(False),
        }
        found = decompose(**numbers, steps=np.array(4), workdir=self.workdir)
        config = json.loads((self.workdir / "config.json").read_text())
        self.assertEqual((config["topk"], config["seed"], config["steps"]), (1.0, 2, 4))
        self.assertIs(type(found.settings.objective.topk), float)
        self.assertIs(type(found.settings.num_components), int)
        python = {
            name: getattr(value, "item", lambda v=value: v)() for name, value in numbers.items()
        }
        python["coefficients"] = {"simplicity": 0.5}
        same(decompose(**python, steps=4, workdir=self.workdir), found)


class SeveralDevicesTest(absltest.TestCase):
    @pytest.mark.slow
    def test_on_two_devices(self):
        """Of a single device no test of `DevicesTest` says anything."""
        found = subprocess.run(
            [sys.executable, __file__, "DevicesTest"],
            env=os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {_TWO_DEVICES}"},
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(found.returncode, 0, found.stderr)
        self.assertNotIn("skipped", found.stderr)


class DevicesTest(EndingsTestCase):
    @pytest.mark.slow
    def test_start_and_data_on_a_mesh_with_explicit_axes(self):
        if jax.device_count() < 2:
            self.skipTest("needs two devices")
        mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        target = networks.mlp()
        init = networks.components(target.at(X), 3, 1)
        data, start, params = jax.device_put((jnp.asarray(X), init, target.params), sharding)
        moved = apd_jax.Target(networks.mlp_apply, params)
        found = apd_jax.decompose(moved, data, init=start, **OPTIONS)
        same(found, apd_jax.decompose(target, X, init=init, **OPTIONS))

    @pytest.mark.slow
    def test_parameters_elsewhere(self):
        if jax.device_count() < 2:
            self.skipTest("needs two devices")
        mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        target, expected = networks.mlp(), decompose(restarts=2)
        for place in (jax.devices()[1], replicated):
            moved = apd_jax.Target(networks.mlp_apply, jax.device_put(target.params, place))
            found = apd_jax.decompose(moved, X, **OPTIONS, restarts=2)
            same(found, expected)
            np.testing.assert_array_equal(found(X[:8]), expected(X[:8]))

    @pytest.mark.slow
    def test_a_result_asked_about_inputs_elsewhere(self):
        if jax.device_count() < 2:
            self.skipTest("needs two devices")
        found, second = whole(), jax.devices()[1]
        mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
        divided = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
        for place in (second, divided):
            x = jax.device_put(jnp.asarray(X[:8]), place)
            np.testing.assert_array_equal(found(x), found(X[:8]))
            np.testing.assert_array_equal(found.mask(x), found.mask(X[:8]))
            np.testing.assert_array_equal(found.attributions(x), found.attributions(X[:8]))
            np.testing.assert_array_equal(found.ablate(x, 0), found.ablate(X[:8], 0))
        loose = dataclasses.replace(
            found,
            target=apd_jax.Target(networks.mlp_apply, jax.device_get(found.target.params)),
            components=jax.device_put(found.components, second),
        )
        self.assertAlmostEqual(apd_jax.compare(found, loose).mmcs_first, 1.0, places=5)
        x = jax.device_put(jnp.asarray(X[:8]), second)
        np.testing.assert_array_equal(loose(x), found(X[:8]))
        self.assertEqual(loose(x).devices(), {second})


if __name__ == "__main__":
    absltest.main()
