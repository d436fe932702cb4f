"""Checkpoints: bit for bit, whole or not there, and the one before where one is broken."""

import gc
import pathlib
import resource
import shutil
import sys
import tempfile
import threading
import time
import types
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from absl.testing import absltest, parameterized

from apd_jax.runtime import checksum, paths
from apd_jax.runtime.checkpoint import Checkpointer, CheckpointError


class State(NamedTuple):
    step: jax.Array
    components: dict[str, Any]
    optimizer: Any
    key: jax.Array


def state_at(seed: int, width: int = 6) -> State:
    """A state with every kind of leaf: NamedTuple, optax, keys with "/", -0.0, NaN bits."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    odd = np.array([0x7FC00123, 0x80000000, 0xFF800000, 1], np.uint32).view(np.float32)
    components = {"layers_0/mlp_in": {"U": normal(2, 3, width), "V": normal(2, width, 1)}}
    components["odd"] = {"U": jnp.asarray(odd), "V": jnp.full((3,), -0.0)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init(components)
    key = jax.random.key_data(jax.random.key(seed))
    return State(jnp.full((2,), seed, jnp.int32), components, optimizer, key)


def abstract(state):
    return jax.eval_shape(lambda: state)


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def files_of(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in path.rglob("*") if p.is_file() and p.stat().st_size)


def truncate(path: pathlib.Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: pathlib.Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def largest(step: pathlib.Path) -> pathlib.Path:
    return max(files_of(step / "state"), key=lambda p: p.stat().st_size)


DAMAGES = {
    "data_truncated": lambda step: truncate(largest(step)),
    "data_flipped": lambda step: flip(largest(step)),
    "data_missing": lambda step: largest(step).unlink(),
    "metadata_truncated": lambda step: truncate(step / "metadata" / "metadata"),
    "metadata_flipped": lambda step: flip(step / "metadata" / "metadata"),
    "metadata_missing": lambda step: shutil.rmtree(step / "metadata"),
    "state_missing": lambda step: shutil.rmtree(step / "state"),
    "all_missing": lambda step: [shutil.rmtree(step), step.mkdir()],
}


class CheckpointTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.directory = pathlib.Path(folder) / "checkpoints"

    def save(self, *steps: int, **kwargs):
        with Checkpointer(self.directory, **kwargs) as checkpointer:
            for step in steps:
                checkpointer.save(step, state_at(step), {"step": step, "config": {"a": [1, None]}})

    def restore(self):
        with Checkpointer(self.directory) as checkpointer:
            return checkpointer.restore_latest(abstract(state_at(0)))


class PathTest(CheckpointTestCase):
    @parameterized.parameters(
        "a[1]", "[", "back\\slash", "gs:", "*", "{a,b}", "a b", "%20", "q?", "a#b", "x\ny", "\udcff"
    )
    @pytest.mark.slow
    def test_every_name_that_a_file_system_takes(self, name):
        self.directory = self.directory.parent / name / "checkpoints"
        self.save(1)
        with Checkpointer(self.directory) as checkpointer:
            restored = checkpointer.restore_latest(abstract(state_at(0)))
            checkpointer.save(2, state_at(2), {})
        self.assertEqual((restored.step, bits(restored.state)), (1, bits(state_at(1))))
        self.assertEqual(self.restore().step, 2)


class RoundTripTest(CheckpointTestCase):
    def test_round_trip_is_exact(self):
        self.save(100)
        step, state, metadata = self.restore()
        expected = state_at(100)
        self.assertEqual(step, 100)
        self.assertEqual(metadata, {"step": 100, "config": {"a": [1, None]}})
        self.assertEqual(jax.tree.structure(state), jax.tree.structure(expected))
        self.assertEqual(bits(state), bits(expected))
        for leaf, other in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
            self.assertIsInstance(leaf, jax.Array)
            self.assertEqual((leaf.shape, leaf.dtype), (other.shape, other.dtype))

    def test_nothing_to_restore(self):
        self.assertIsNone(self.restore())

    def test_takes_the_sharding_of_the_abstract_state(self):
        self.save(1)
        mesh = jax.make_mesh((1,), ("seeds",), axis_types=(jax.sharding.AxisType.Auto,))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

        def like(array):
            return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

        with Checkpointer(self.directory) as checkpointer:
            state = checkpointer.restore_latest(jax.tree.map(like, state_at(1))).state
        self.assertTrue(all(leaf.sharding == sharding for leaf in jax.tree.leaves(state)))

    def test_buffers_may_be_donated_at_once(self):
        advance = jax.jit(lambda tree: jax.tree.map(lambda a: a + 1, tree), donate_argnums=0)
        state = {"w": jnp.zeros((500, 1000))}
        with Checkpointer(self.directory, max_to_keep=9) as checkpointer:
            for step in range(4):
                checkpointer.save(step, state, {})
                for _ in range(3):
                    state = advance(state)
            for step in reversed(range(4)):
                saved = checkpointer.restore_latest(abstract(state)).state
                np.testing.assert_array_equal(saved["w"], np.full((500, 1000), 3.0 * step))
                shutil.rmtree(self.directory / str(step))

    def test_restored_buffers_may_be_donated(self):
        self.save(1)
        state = self.restore().state
        advance = jax.jit(lambda tree: jax.tree.map(lambda a: a * 2, tree), donate_argnums=0)
        for _ in range(2):
            state = advance(state)
        self.assertEqual(bits(state.step), bits(jnp.full((2,), 4, jnp.int32)))
        self.assertEqual(bits(self.restore().state), bits(state_at(1)))

    def test_keeps_the_newest(self):
        self.save(1, 2, 3, 4, max_to_keep=2)
        with Checkpointer(self.directory) as checkpointer:
            self.assertEqual(checkpointer.steps(), [3, 4])

    def test_save_waits_neither_for_checksums_nor_for_the_disk(self):
        go, seal = threading.Event(), checksum.seal

        def held(*args):
            go.wait(5)
            return seal(*args)

        with Checkpointer(self.directory) as checkpointer:
            with mock.patch.object(checksum, "seal", held):
                state = state_at(1)
                checkpointer.save(1, state, {})
                self.assertEqual(checkpointer.steps(), [])
                jax.jit(lambda w: w + 1, donate_argnums=0)(state.components["odd"]["V"])
                self.assertTrue(state.components["odd"]["V"].is_deleted())  # nobody holds a view
                go.set()
                checkpointer.wait()
            self.assertEqual(checkpointer.steps(), [1])

    def test_same_step_again_is_left_alone(self):
        self.save(5, 5)
        with Checkpointer(self.directory) as checkpointer:
            checkpointer.restore_latest(abstract(state_at(0)))
            checkpointer.save(5, state_at(6), {})
        self.assertEqual(bits(self.restore().state), bits(state_at(5)))

    def test_step_that_another_process_has_just_written(self):
        """Only process 0 writes, and may be done before a slower process comes to its save."""
        with mock.patch.object(jax, "process_index", return_value=1):
            slower = Checkpointer(self.directory)
        self.save(5, 5)
        with slower:
            slower.save(5, state_at(5), {})
        self.assertEqual(bits(self.restore().state), bits(state_at(5)))

    def test_step_of_a_run_that_was_not_restored(self):
        self.save(5)
        with self.assertRaisesRegex(ValueError, "step 5 from another run: call restore_latest"):
            self.save(5)

    def test_no_save_is_left_out_in_silence(self):
        self.save(5)
        self.save(3)
        with Checkpointer(self.directory) as checkpointer:
            self.assertEqual(checkpointer.steps(), [3, 5])

    def test_metadata_must_be_json(self):
        with Checkpointer(self.directory) as checkpointer:
            with self.assertRaises(TypeError):
                checkpointer.save(1, state_at(1), {"a": object()})
            self.assertEqual(checkpointer.steps(), [])

    def test_max_to_keep(self):
        with self.assertRaisesRegex(ValueError, "at least 1, got 0"):
            Checkpointer(self.directory, max_to_keep=0)

    def test_unfinished_save_is_not_a_checkpoint(self):
        self.save(1, 2)
        (self.directory / "2").rename(self.directory / "2.orbax-checkpoint-tmp")
        with Checkpointer(self.directory) as checkpointer:
            self.assertEqual(checkpointer.restore_latest(abstract(state_at(0))).step, 1)
            checkpointer.save(3, state_at(3), {})
        self.assertEqual({path.name for path in self.directory.iterdir()}, {"1", "3"})


class DamageTest(CheckpointTestCase):
    @parameterized.parameters(*DAMAGES)
    def test_takes_the_one_before(self, damage):
        self.save(100, 200)
        DAMAGES[damage](self.directory / "200")
        with self.assertLogs("absl", "WARNING") as logs:
            step, state, _ = self.restore()
        self.assertEqual(step, 100)
        self.assertEqual(bits(state), bits(state_at(100)))
        self.assertLen(logs.records, 1)
        self.assertRegex(logs.output[0], "checkpoints/200 is damaged and was skipped: .+")

    @pytest.mark.slow
    def test_every_file_cut_flipped_or_lost_is_noticed_or_harmless(self):
        self.save(100, 200)
        whole = self.directory / "200"
        copy = self.directory.with_name("copy")
        shutil.copytree(whole, copy)
        for path in files_of(copy):
            for damage in (truncate, flip, pathlib.Path.unlink):
                damage(whole / path.relative_to(copy))
                step, state, _ = self.restore()
                self.assertEqual(bits(state), bits(state_at(step)), msg=(path, damage))
                shutil.rmtree(whole)
                shutil.copytree(copy, whole)

    def test_a_lie_of_the_disk_is_noticed(self):
        """A readable state of other numbers, with the old record beside it."""
        self.save(100, 200)
        shutil.rmtree(self.directory / "200" / "state")
        shutil.copytree(self.directory / "100" / "state", self.directory / "200" / "state")
        with self.assertLogs("absl", "WARNING") as logs:
            self.assertEqual(self.restore().step, 100)
        self.assertIn("components/layers_0/mlp_in/U", logs.output[0])

    def test_other_metadata_is_noticed(self):
        self.save(100, 200)
        path = self.directory / "200" / "metadata" / "metadata"
        path.write_text(path.read_text().replace('"step": 200', '"step": 201'))
        with self.assertLogs("absl", "WARNING") as logs:
            self.assertEqual(self.restore().step, 100)
        self.assertIn("its metadata is not what was saved", logs.output[0])

    def test_all_broken(self):
        self.save(100, 200)
        flip(largest(self.directory / "100"))
        shutil.rmtree(self.directory / "200" / "state")
        with self.assertRaisesRegex(
            CheckpointError, r"(?s)intact:\n  step 200: .+\n  step 100: .+or"
        ):
            self.restore()

    @parameterized.parameters(150, 200, 250)
    def test_goes_on_after_a_broken_one(self, next_step):
        self.save(100, 200)
        shutil.rmtree(self.directory / "200" / "state")
        with Checkpointer(self.directory) as checkpointer:
            checkpointer.restore_latest(abstract(state_at(0)))
            checkpointer.save(next_step, state_at(next_step), {})
            checkpointer.wait()
            self.assertEqual(checkpointer.steps(), [100, next_step])
        self.assertEqual(self.restore().step, next_step)

    def test_other_layout_is_not_called_broken(self):
        self.save(100)
        with Checkpointer(self.directory) as checkpointer:
            like = abstract(state_at(0, width=7)._replace(key=None))
            with self.assertRaises(ValueError) as caught:
                checkpointer.restore_latest(like)
        message = str(caught.exception)
        self.assertIn("components/layers_0/mlp_in/U: float32[2,3,6] -> float32[2,3,7]", message)
        self.assertIn("key: uint32[2] -> absent", message)


class UnfinishedTest(CheckpointTestCase):
    def test_removed_although_a_thread_still_writes_there(self):
        folder = self.directory / "20.orbax-checkpoint-tmp"
        remove, attempts = shutil.rmtree, []

        def interrupted(path, **options):
            attempts.append(path)
            remove(path, **options)
            if len(attempts) < 3:
                (folder / "state").mkdir(parents=True)

        (folder / "state").mkdir(parents=True)
        with mock.patch.object(paths.shutil, "rmtree", interrupted), Checkpointer(self.directory):
            self.assertFalse(folder.exists())
        self.assertLen(attempts, 3)


class FullDiskTest(CheckpointTestCase):
    def test_full_disk(self):
        """Files over a limit fail to be written, as they do on a full disk."""
        self.save(100)
        big = state_at(200, width=20_000)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        with Checkpointer(self.directory) as checkpointer:
            checkpointer.restore_latest(abstract(state_at(0)))
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
            try:
                checkpointer.save(200, big, {})
                with self.assertRaisesRegex(
                    CheckpointError, r"(?s)step 200 cannot be written.+File too large.+\[100\]"
                ):
                    checkpointer.save(300, big, {})
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            self.assertEqual(checkpointer.steps(), [100])
            self.assertEqual(
                bits(checkpointer.restore_latest(abstract(state_at(0))).state), bits(state_at(100))
            )
            time.sleep(1)  # threads of tensorstore may still write files of what has failed
            checkpointer.save(200, state_at(200), {})  # room again
        self.assertEqual(self.restore().step, 200)

    def test_nothing_is_said_beside_the_error(self):
        self.save(100)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        with mock.patch.object(sys, "unraisablehook", mock.Mock(silences_loops=False)) as said:
            with self.assertRaises(CheckpointError), Checkpointer(self.directory) as checkpointer:
                checkpointer.restore_latest(abstract(state_at(0)))
                resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
                try:
                    checkpointer.save(200, state_at(200, width=20_000), {})
                    checkpointer.wait()
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            gc.collect()
            other = types.SimpleNamespace(exc_value=RuntimeError("another"))
            sys.unraisablehook(other)
        self.assertEqual([call.args for call in said.call_args_list], [(other,)])

    @parameterized.parameters(
        OSError(30, "Read-only file system"),
        ValueError(
            f"OUT_OF_RANGE: Error writing{' a long name' * 50}: Read-only file system "
            f"[tensorstore_spec='{{{'x' * 900}}}'] [os_error_code='30']"
        ),
    )
    def test_unwritable(self, error):
        self.save(100)
        with (
            mock.patch.object(orbax.checkpoint.CheckpointManager, "save", side_effect=error),
            Checkpointer(self.directory) as checkpointer,
        ):
            checkpointer.save(200, state_at(200), {})
            with self.assertRaisesRegex(CheckpointError, "step 200.+Read-only file system"):
                checkpointer.wait()
        self.assertEqual(self.restore().step, 100)


if __name__ == "__main__":
    absltest.main()
