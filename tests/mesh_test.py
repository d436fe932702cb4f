"""Trainings that are divided over devices and processes are those of one device.

The trainings are made by `mesh_cases.py`, in processes of their own. Compiling takes most of the
time, so not every case is on every mesh here; `soak/meshes.py` has them all.
"""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import jax
import mesh_cases
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from jax import numpy as jnp

from apd_jax.errors import UserError
from apd_jax.programs import partition
from apd_jax.runtime import mesh, processes
from apd_jax.training.optimizers import adam, in_bfloat16

ROOT = pathlib.Path(__file__).parent.parent
MESHES = [[1, 1, 1], [8, 1, 1], [1, 8, 1], [1, 1, 8], [2, 2, 2]]  # for the soak
TWO = [[1, 1, 1], [2, 2, 2]]
TMS = "5-2,40-10"
ARGUMENT, OUTPUT, ALIAS, TEMP = range(4)


def start(out, shapes, *options, devices=8):
    """A process that makes trainings; see `mesh_cases.py`."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, ROOT / "tests/mesh_cases.py", out, str(shapes), *map(str, options)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
        stderr=subprocess.PIPE,
        text=True,
    )


def together(count, out, shapes, *options, devices=1):
    """N processes, each with as many devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = ("--coordinator", f"localhost:{port}", "--num_processes", count, *options)
    return [
        start(out, shapes, *shared, "--process_id", place, devices=devices)
        for place in range(count)
    ]


def finish(*running):
    """Wait for processes, which have to end well."""
    for process in running:
        _, errors = process.communicate(timeout=900)
        if process.returncode:
            raise AssertionError(errors[-3000:])


def check(found, alone, name):
    """Losses and masks of a case on all its meshes are those of one device."""
    losses, masks = (alone[f"{name} [1, 1, 1] {what}"] for what in ("losses", "masks"))
    assert masks.sum() > 0
    keys = [key for key in found if key.startswith(f"{name} [")]
    assert keys, f"no training of {name}"
    for key in keys:
        if key.endswith("losses"):
            np.testing.assert_allclose(found[key], losses, rtol=1e-5, err_msg=key)
        else:
            np.testing.assert_array_equal(found[key], masks, err_msg=key)


class LayoutTest(parameterized.TestCase):
    @parameterized.parameters(
        ((1, 2), "mesh must be three numbers of at least 1, for seeds, data, components"),
        ((1, 1, 0), "mesh must be three numbers"),
        ((1.0, 1.0, 1.0), "mesh must be three numbers"),
        (3, "mesh must be three numbers .* got 3"),
        ("111", "mesh must be three numbers .* got '111'"),
        ((3, 1, 1), r"divides 2 seeds \(times restarts\) by 3, .*: 1, 2 would divide"),
        ((1, 5, 1), "divides 64 examples of a batch .* by 5, .*: 1, 2, 4, 8, 16, 32, 64 would"),
        ((1, 1, 3), "divides 50 components by 3, .*: 1, 2, 5, 10, 25, 50 would divide them evenly"),
        ((2, 64, 50), "needs 6400 devices, and there are"),
    )
    def test_refused(self, shape, message):
        with self.assertRaisesRegex(UserError, message):
            mesh.layout(2, shape, batch_size=64, num_components=50)

    def test_one_device_has_no_layout(self):
        for shape in ((1, 1, 1), np.array([1, 1, 1]), jnp.array([1, 1, 1])):
            self.assertIsNone(mesh.layout(2, shape, batch_size=64, num_components=50))

    def test_without_a_mesh_nothing_is_divided(self):
        x = jnp.arange(6.0).reshape(2, 3)
        self.assertEqual(partition.number(), 1)
        self.assertIs(partition.over_data(x), x)
        self.assertIs(partition.over_components({"a": x}, 2)["a"], x)
        np.testing.assert_array_equal(partition.joined_shares(partition.shares(x, 2)), x)

    def test_a_mesh_for_one_training(self):
        self.assertEqual(mesh.without_seeds((4, 2, 2), 16), (1, 8, 2))
        self.assertEqual(mesh.without_seeds((3, 2, 2), 16), (1, 2, 2))


class ProcessesTest(parameterized.TestCase):
    def test_some_flags_are_missing(self):
        with self.assertRaisesRegex(UserError, "--num_processes, --process_id missing"):
            processes.start("localhost:1", None, None, detect=False)

    def test_no_port(self):
        with self.assertRaisesRegex(UserError, "HOST:PORT, got 'here'"):
            processes.start("here", 2, 0, detect=False)

    def test_one_process(self):
        processes.start(None, None, None, detect=False)
        self.assertTrue(processes.any_of(True))
        self.assertFalse(processes.any_of(False))
        processes.raise_if_lost(ValueError("Gloo AllGather failed: Connection closed by peer"))


class MomentsTest(absltest.TestCase):
    def test_moments_in_bfloat16(self):
        """Both moments are on average those in float32, also where gradients have shrunk."""
        params = {"w": jnp.ones(4000)}
        exact, short = adam(lambda _: 1e-2), in_bfloat16(adam(lambda _: 1e-2))

        def run(transformation):
            def step(state, size):
                return transformation.update({"w": jnp.full(4000, size)}, state, params)[1], None

            sizes = jnp.concatenate([jnp.ones(20), jnp.full(300, 0.01)])
            state = jax.lax.scan(step, transformation.init(params), sizes)[0]
            return next(part for part in state if isinstance(part, optax.ScaleByAdamState))

        expected, found = run(exact), run(short)
        self.assertEqual((found.mu["w"].dtype, found.nu["w"].dtype), (jnp.bfloat16,) * 2)
        for moment in ("mu", "nu"):
            mean = np.mean(getattr(found, moment)["w"].astype(float))
            np.testing.assert_allclose(mean, getattr(expected, moment)["w"][0], rtol=5e-3)


@pytest.mark.slow
class DevicesTest(parameterized.TestCase):
    """What a process with eight devices makes, for all tests."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.root = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        finish(start(cls.root / "transformer.npz", TWO, "--cases", "transformer"))
        options = ("--cases", TMS, "--topk", "--rounds", "--memory", [[1, 1, 1], [1, 1, 8]])
        options = (*options, "--until", 5, "--resume", cls.root / "run")
        finish(start(cls.root / "others.npz", [[1, 4, 2], [1, 1, 1], [1, 1, 8]], *options))
        cls.others = np.load(cls.root / "others.npz")
        cls.alone = {**cls.others, **np.load(cls.root / "transformer.npz")}

    @parameterized.parameters(*mesh_cases.CASES)
    def test_meshes(self, name):
        check(self.alone, self.alone, name)

    def test_topk_is_exact(self):
        for name in self.others:
            if name.startswith("topk"):
                self.assertEqual(self.others[name], 0, name)

    def test_rounds_of_refinement(self):
        """Also micro-batches, relative losses, and moments in bfloat16."""
        found, expected = (self.others[f"rounds {m} losses"] for m in ("[1, 4, 2]", "[1, 1, 1]"))
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_state_is_divided(self):
        alone, divided = self.others["bytes [1, 1, 1]"], self.others["bytes [1, 1, 8]"]
        self.assertLessEqual(divided[OUTPUT], alone[OUTPUT] / 6)
        self.assertGreater(divided[ALIAS], 0.9 * divided[OUTPUT])  # donated
        self.assertLess(divided[TEMP], alone[TEMP] / 2)

    def test_two_processes_and_a_checkpoint_of_other_devices(self):
        """The processes divide examples between them and, when they resume, components."""
        copied = shutil.copytree(self.root / "run", self.root / "copied")
        out, options = self.root / "two.npz", ("--resume", copied, "--resume_on", [1, 1, 4])
        finish(*together(2, out, [[1, 2, 2]], "--cases", "5-2", *options, devices=2))
        two = np.load(out)
        check(two, self.alone, "5-2")
        whole, resumed = (mesh_cases.resume(self.root / n, [1, 1, 1]) for n in ("new", "run"))
        for name, expected in whole.items():
            np.testing.assert_allclose(resumed[name], expected, atol=1e-5)
            np.testing.assert_allclose(two[f"resumed 0 {name}"], expected, atol=1e-5)


@pytest.mark.slow
class CommandTest(absltest.TestCase):
    def test_sigterm_to_one_process(self):
        """All save, and exit with status 75; one that is killed ends the other."""
        root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        fields = {"steps": 100_000, "num_components": 8, "batch_size": 8, "target.steps": 0}
        fields |= {"chunk_steps": 5, "tensorboard": False}
        log = root / "log"

        def begin():
            command = subprocess.Popen(
                ["bash", ROOT / "launch/local_processes.sh", "2", "--config=configs/tms.py:5-2"]
                + [f"--workdir={root / 'run'}", *(f"--config.{n}={v}" for n, v in fields.items())],
                cwd=ROOT,
                stderr=log.open("w"),
            )
            while "decomposition: " not in log.read_text():
                self.assertIsNone(command.poll(), log.read_text())
                time.sleep(0.1)
            found = subprocess.run(
                ["pgrep", "-f", f"process_id=1 .*--workdir={root / 'run'}"],
                capture_output=True,
                text=True,
                check=True,
            )
            return command, int(found.stdout.split()[0]), time.monotonic()

        command, second, begun = begin()
        os.kill(second, signal.SIGTERM)
        self.assertEqual(command.wait(), 75, log.read_text())
        self.assertLess(time.monotonic() - begun, 20)
        command, second, begun = begin()
        self.assertIn("resuming from step", log.read_text())
        os.kill(second, signal.SIGKILL)
        self.assertNotIn(command.wait(), (0, 75))
        self.assertLess(time.monotonic() - begun, 60)
        self.assertRegex(log.read_text(), "another process of this run has ended|SIGABRT")


if __name__ == "__main__":
    absltest.main()
