"""Metrics: every step once, whole lines, three kinds of readers."""

import io
import json
import os
import pathlib
import struct
import sys
import tempfile
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from tensorboardX.proto import event_pb2

from apd_jax.errors import UserError
from apd_jax.runtime import metric_writer
from apd_jax.runtime.metric_writer import MetricWriter


def events_in(directory: pathlib.Path) -> list[event_pb2.Event]:
    """TensorBoard events, by file name: records of length (8), crc (4), content, crc (4)."""
    events = []
    for path in sorted(directory.iterdir()):
        content = io.BytesIO(path.read_bytes())
        while header := content.read(12):
            event = event_pb2.Event.FromString(content.read(struct.unpack("Q", header[:8])[0]))
            content.read(4)
            events.append(event)
    return events


def shown(directory: pathlib.Path) -> list[int]:
    """Steps that TensorBoard shows: a start event hides those at or after its step."""
    steps: list[int] = []
    for event in events_in(directory):
        if event.HasField("session_log"):
            steps = [step for step in steps if step < event.step]
        if event.HasField("summary"):
            steps.append(event.step)
    return steps


class FakeWandb(types.ModuleType):
    """Takes what the writer gives it."""

    Error = type("Error", (Exception,), {})

    def __init__(self):
        super().__init__("wandb")
        self.started, self.logged, self.finished = [], [], 0

    def init(self, **settings):
        self.started.append(settings)
        return self

    def log(self, curves, step):
        self.logged.append((step, curves))

    def finish(self):
        self.finished += 1


class MetricWriterTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.directory = root / "run"
        self.events = self.directory / "tensorboard"

    def write(self, steps, resume_step=None, **kwargs):
        with MetricWriter(self.directory, resume_step=resume_step, **kwargs) as writer:
            for step in steps:
                writer.write(step, {"loss/total": np.float32([step, 0.5]), "learning_rate": 0.1})

    def rows(self):
        text = (self.directory / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def steps(self):
        return [row["step"] for row in self.rows()]


class RowsTest(MetricWriterTestCase):
    def test_row(self):
        with MetricWriter(self.directory, tensorboard=False) as writer:
            metrics = {"a": jnp.ones(2), "b": 0.1, "c": jnp.int32(3), "d": [1.0, 2.0]}
            writer.write(np.int64(7), metrics)
            expected = {"step": 7, "a": [1.0, 1.0], "b": 0.1, "c": 3, "d": [1.0, 2.0]}
            self.assertEqual(self.rows(), [expected])  # before it is closed
        self.assertFalse(self.events.exists())

    def test_not_finite_is_null(self):
        with MetricWriter(self.directory) as writer:
            writer.write(1, {"a": np.float32([1, np.nan, np.inf]), "b": -np.inf})
        self.assertEqual(self.rows(), [{"step": 1, "a": [1.0, None, None], "b": None}])

    def test_other_processes_write_nothing(self):
        with mock.patch.object(jax, "process_index", return_value=1):
            self.write([1], wandb={"project": "p"})
        self.assertFalse(self.directory.exists())

    def test_full_disk(self):
        with MetricWriter(self.directory) as writer:
            error = OSError(28, "No space left on device")
            with mock.patch.object(writer, "_file") as file:
                file.write.side_effect = error
                with self.assertRaisesRegex(
                    OSError, "written .No space.+free disk space.+metrics.jsonl"
                ):
                    writer.write(5, {"a": 1.0})


class ResumeTest(MetricWriterTestCase):
    def test_no_step_twice(self):
        self.write([100, 200, 300, 400])
        self.write([300, 400, 500], resume_step=200)
        self.assertEqual(self.steps(), [100, 200, 300, 400, 500])
        self.assertEqual(shown(self.events), [100, 200, 300, 400, 500])

    def test_from_the_start(self):
        self.write([100, 200])
        self.write([100])
        self.assertEqual(self.steps(), [100])
        self.assertEqual(shown(self.events), [100])

    @parameterized.parameters('{"step": 150, "loss/to', '{"step": 150}', "null\n", '{"loss": 1}\n')
    def test_row_cut_short(self, rest):
        self.write([100, 200])
        with open(self.directory / "metrics.jsonl", "a") as file:
            file.write(rest)
        self.write([300], resume_step=200)
        self.assertEqual(self.steps(), [100, 200, 300])

    def test_nothing_to_drop_leaves_the_file(self):
        self.write([100])
        before = (self.directory / "metrics.jsonl").stat().st_ino
        self.write([], resume_step=100)
        self.assertEqual((self.directory / "metrics.jsonl").stat().st_ino, before)


class TensorBoardTest(MetricWriterTestCase):
    def test_curves(self):
        self.write([3])
        values = [v for event in events_in(self.events) for v in event.summary.value]
        self.assertEqual(
            {value.tag: value.simple_value for value in values},
            {
                "loss/total": 1.75,
                "loss/total/seed_0": 3.0,
                "loss/total/seed_1": 0.5,
                "learning_rate": np.float32(0.1),
            },
        )

    def test_one_seed_is_one_curve(self):
        with MetricWriter(self.directory) as writer:
            writer.write(1, {"loss": np.float32([2.0])})
        (value,) = [v for event in events_in(self.events) for v in event.summary.value]
        self.assertEqual((value.tag, value.simple_value), ("loss", 2.0))

    def test_first_row_is_on_disk_at_once(self):
        with MetricWriter(self.directory) as writer:
            writer._events._flushed = -np.inf
            writer.write(1, {"loss": 2.0})
            self.assertEqual(shown(self.events), [1])


class WandbTest(MetricWriterTestCase):
    def setUp(self):
        super().setUp()
        self.wandb = FakeWandb()
        self.enterContext(mock.patch.dict(sys.modules, {"wandb": self.wandb}))

    @parameterized.parameters((None,), ({},), ({"project": None, "mode": "offline"},))
    def test_off_without_a_project(self, settings):
        self.write([1], wandb=settings)
        self.assertEqual(self.wandb.started, [])

    def test_settings_and_curves(self):
        settings = {"project": "p", "mode": "offline", "entity": None, "config": {"seed": 0}}
        self.write([1], wandb=settings)
        (started,) = self.wandb.started
        run = {"id": mock.ANY, "resume": "allow", "dir": mock.ANY}
        self.assertEqual(started, run | {"project": "p", "mode": "offline", "config": {"seed": 0}})
        curves = {"loss/total": 0.75, "loss/total/seed_0": 1.0, "loss/total/seed_1": 0.5}
        self.assertEqual(self.wandb.logged, [(1, curves | {"learning_rate": 0.1})])
        self.assertEqual(self.wandb.finished, 1)

    def test_resume_goes_on_with_the_same_run(self):
        for resume_step in (None, 1, 2, None):
            self.write([], wandb={"project": "p"}, resume_step=resume_step)
        first, second, third, fresh = [settings["id"] for settings in self.wandb.started]
        self.assertEqual([first, first], [second, third])
        self.assertNotEqual(first, fresh)

    def test_missing(self):
        message = r"wandb.project is 'p'.+not installed: pip install apd_jax\[wandb\]"
        self.write([1, 2])
        with (
            mock.patch.dict(sys.modules, {"wandb": None}),
            self.assertRaisesRegex(UserError, message),
        ):
            self.write([1], wandb={"project": "p"})
        self.assertEqual(self.steps(), [1, 2])  # nothing was dropped

    @parameterized.parameters(
        ({"login": lambda: False}, None, "no key is known"),
        (
            {"login": mock.Mock(side_effect=RuntimeError("api_key not\nconfigured"))},
            None,
            "not conf",
        ),
        ({"login": mock.Mock(side_effect=OSError("no network"))}, "online", "no network"),
        ({}, "onlin", "wandb.mode must be online, offline or disabled, got 'onlin'"),
    )
    def test_login_is_looked_for_before_any_work(self, attributes, mode, message):
        for name, value in attributes.items():
            setattr(self.wandb, name, value)
        with self.assertRaisesRegex(UserError, message):
            metric_writer.check_login("p", mode)

    @parameterized.parameters((None, "offline"), ("disabled", "online"), ("online", "offline"))
    def test_login_that_is_not_needed(self, mode, variable):
        self.wandb.login = lambda: mode == "online"
        with mock.patch.dict(os.environ, WANDB_MODE=variable):
            metric_writer.check_login("p", mode)

    def test_does_not_start(self):
        with (
            mock.patch.object(self.wandb, "init", side_effect=self.wandb.Error("No API key.")),
            self.assertRaisesRegex(UserError, "not start .No API key.*wandb.mode to 'offline'"),
        ):
            self.write([1], wandb={"project": "p"})


if __name__ == "__main__":
    absltest.main()
