"""Finished components on disk: there and back, for people without orbax too, never half."""

import json
import os
import pathlib
import shutil
import tempfile
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.errors import UserError
from apd_jax.runtime import checkpoint, export, paths


class Factors(NamedTuple):
    reads: jax.Array

    @property
    def U(self):
        return jnp.swapaxes(self.reads, -1, -2)

    @property
    def V(self):
        return 2.0 * self.reads


def components_of(seed: int) -> dict[str, Factors]:
    reads = jnp.asarray(np.random.default_rng(seed).standard_normal((2, 5, 3, 4)), jnp.float32)
    return {"layers_0/mlp_in": Factors(reads), "linear1": Factors(-reads)}


PARAMS = {"layers_0": {"mlp_in": {"kernel": jnp.arange(6.0).reshape(2, 3)}}, "b": jnp.ones(())}
CONFIG = {"name": "tms", "target": {"features": 5}, "rank": None}


class ExportTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.directory = self.root / "components"

    def save(self, seed: int, params=PARAMS):
        export.save_components(self.directory, components_of(seed), params, CONFIG)

    def assert_holds(self, seed: int):
        components, params, config, _ = export.load_components(self.directory)
        self.assertEqual(set(components), set(components_of(seed)))
        for site, factors in components_of(seed).items():
            np.testing.assert_array_equal(components[site]["U"], factors.U)
            np.testing.assert_array_equal(components[site]["V"], factors.V)
        self.assertEqual(config, CONFIG)
        return params

    def test_round_trip(self):
        self.save(1)
        params = self.assert_holds(1)
        jax.tree.map(np.testing.assert_array_equal, params, PARAMS)

    def test_target_params_of_any_structure(self):
        class Layer(NamedTuple):
            w: jax.Array

        self.save(1, [Layer(jnp.ones(2)), (jnp.zeros(3), jnp.ones(()))])
        params = self.assert_holds(1)
        self.assertEqual(jax.tree.map(jnp.shape, params), [{"w": (2,)}, [(3,), ()]])

    def test_plain_files(self):
        self.save(1)
        arrays = safetensors.numpy.load_file(self.directory / "components.safetensors")
        keys = {f"{site}.{k}" for site in components_of(1) for k in "UV"}
        self.assertEqual(set(arrays), keys | {"target/layers_0/mlp_in/kernel", "target/b"})
        np.testing.assert_array_equal(arrays["linear1.U"], components_of(1)["linear1"].U)
        self.assertEqual(json.loads((self.directory / "config.json").read_text()), CONFIG)

    @parameterized.named_parameters(
        ("Fortran's order", np.asfortranarray(np.arange(6.0, dtype="f4").reshape(2, 3))),
        ("every second", np.arange(12.0, dtype="f4").reshape(2, 6)[:, ::2]),
        ("backwards", np.arange(6.0, dtype="f4").reshape(2, 3)[::-1]),
        ("a number", np.asarray(2.5, "f4")),
    )
    def test_plain_files_of_arrays_in_any_order(self, array):
        self.save(1, {"w": array})
        plain = safetensors.numpy.load_file(self.directory / "components.safetensors")
        np.testing.assert_array_equal(plain["target/w"], array)

    def test_a_plain_file_of_something_else_is_noticed(self):
        def save(arrays, path, real=safetensors.numpy.save_file):
            real({name: np.asarray(array + 1) for name, array in arrays.items()}, path)

        with (
            mock.patch.object(safetensors.numpy, "save_file", save),
            self.assertRaisesRegex(checkpoint.CheckpointError, "does not hold"),
        ):
            self.save(1)

    def test_saved_again(self):
        self.save(1)
        self.save(2)
        self.assert_holds(2)
        self.assertEqual([p.name for p in self.root.iterdir()], ["components"])

    def test_other_peoples_files_stay(self):
        self.directory.mkdir()
        (self.directory / "thesis.tex").touch()
        with self.assertRaisesRegex(ValueError, "thesis.tex.+choose a new directory"):
            self.save(1)
        self.assertEqual([p.name for p in self.directory.iterdir()], ["thesis.tex"])

    def test_a_directory_below_a_file(self):
        (self.root / "file").touch()
        self.directory = self.root / "file" / "components"
        with self.assertRaisesRegex(
            checkpoint.CheckpointError, "cannot be written to .*file/components"
        ):
            self.save(1)

    def test_a_name_that_is_too_long(self):
        self.directory = self.root / ("x" * 300)
        with self.assertRaisesRegex(checkpoint.CheckpointError, "File name too long"):
            self.save(1)
        with self.assertRaisesRegex(UserError, "holds no saved components"):
            export.load_components(self.directory)

    def test_a_name_that_no_file_has(self):
        self.directory = self.root / "a\0"
        for call in (lambda: self.save(1), lambda: export.load_components(self.directory)):
            with self.assertRaisesRegex(UserError, "a path can't have the character"):
                call()

    def test_no_link_can_be_made(self):
        self.directory = self.root / "w [11]"
        error = OSError(1314, "privilege not held")
        with mock.patch.object(pathlib.Path, "symlink_to", side_effect=error):
            message = r"w \[11\].*privilege not held.*: choose a path of letters, digits"
            with self.assertRaisesRegex(UserError, message):
                self.save(1)
            with self.assertRaisesRegex(UserError, message):
                checkpoint.Checkpointer(self.directory)

    def test_paths_of_windows_need_no_link(self):
        directory = pathlib.PureWindowsPath(r"C:\Users\Zoë B~1\run")
        with mock.patch.object(os, "name", "nt"), paths.plain(directory) as found:
            self.assertIs(found, directory)

    @parameterized.parameters(("config.json",), ("orbax/model",), (".config",))
    def test_directory_of_somebody_else(self, name):
        (self.directory / name).parent.mkdir(parents=True)
        (self.directory / name).write_text("mine")
        with self.assertRaisesRegex(ValueError, "holds other files"):
            self.save(1)
        self.assertEqual((self.directory / name).read_text(), "mine")
        self.assertEqual([p.name for p in self.root.iterdir()], ["components"])

    @parameterized.parameters(".DS_Store", "._config.json", "Thumbs.db", ".nfs0001", "lost+found")
    def test_what_file_managers_leave(self, name):
        self.directory.mkdir()
        (self.directory / name).write_text("icons")
        self.save(1)
        self.save(2)
        self.assert_holds(2)
        self.assertEqual((self.directory / name).read_text(), "icons")

    def test_files_put_beside_saved_ones_stay(self):
        self.save(1)
        (self.directory / "notes" / "orbax").mkdir(parents=True)
        (self.directory / "notes" / "orbax" / "a.txt").write_text("mine")
        (self.directory / "link").symlink_to("nowhere")
        self.save(2)
        self.assert_holds(2)
        self.assertEqual((self.directory / "notes" / "orbax" / "a.txt").read_text(), "mine")
        self.assertTrue((self.directory / "link").is_symlink())

    def test_through_a_link(self):
        self.save(1)
        (self.root / "link").symlink_to("components")
        self.directory = self.root / "link"
        self.save(2)
        self.assert_holds(2)
        self.assertTrue(self.directory.is_symlink())

    @parameterized.parameters("a[1]", "back\\slash", "a b\nc", "\udcff", "é" * 120)
    def test_names_that_mean_something_to_a_library(self, name):
        self.directory = self.root / name
        self.save(1)
        self.save(2)
        self.assert_holds(2)
        self.assertEqual([p.name for p in self.root.iterdir()], [name])

    @parameterized.parameters(1, 2)
    def test_killed_between_two_renames(self, renames):
        self.save(1)
        done, rename = [], pathlib.Path.rename

        def killed(path, other):
            done.append(path)
            if len(done) == renames:
                raise KeyboardInterrupt
            return rename(path, other)

        with (
            mock.patch.object(pathlib.Path, "rename", killed),
            mock.patch.object(export, "_clear"),  # a kill runs nothing after it
            self.assertRaises(KeyboardInterrupt),
        ):
            self.save(2)
        self.assertEqual(self.directory.exists(), renames == 1)
        with (
            mock.patch.object(export, "_write_components", side_effect=OSError(28, "No space")),
            self.assertRaisesRegex(checkpoint.CheckpointError, "No space"),
        ):
            self.save(3)
        self.assert_holds(1)
        self.save(3)
        self.assert_holds(3)
        self.assertEqual([p.name for p in self.root.iterdir()], ["components"])

    @parameterized.parameters("save_file", "_replace_directory")
    def test_what_was_there_survives_a_failure(self, function):
        self.save(1)
        module = safetensors.numpy if function == "save_file" else export
        error = OSError(28, "No space left on device")
        message = "components.+No space left"
        with (
            mock.patch.object(module, function, side_effect=error),
            self.assertRaisesRegex(checkpoint.CheckpointError, message),
        ):
            self.save(2)
        self.assert_holds(1)
        self.assertEqual([p.name for p in self.root.iterdir()], ["components"])

    def test_damage_is_noticed(self):
        self.save(1)
        data = max(self.directory.glob("orbax/0/state/**/d/*"), key=lambda p: p.stat().st_size)
        data.write_bytes(data.read_bytes()[:-5])
        with self.assertRaisesRegex(checkpoint.CheckpointError, "intact"):
            export.load_components(self.directory)

    def test_not_a_saved_directory(self):
        with self.assertRaisesRegex(ValueError, "holds no saved components: there is no .+orbax"):
            export.load_components(self.root)
        with self.assertRaisesRegex(ValueError, "there is no [^;]+orbax.$"):
            export.load_components(self.root)

    def test_a_directory_around_saved_ones(self):
        """As a working directory, and that of a run with several seeds."""
        self.save(1)
        around = self.root / "runs" / "mine"
        for name in ("seed_1", "seed_0"):
            shutil.copytree(self.directory, around / "components" / name)
        message = "there is no .*; there are saved components in "
        with self.assertRaisesRegex(UserError, f"{message}{self.directory}.$"):
            export.load_components(self.root)
        for directory in (around, around / "components"):
            places = ", ".join(str(around / "components" / f"seed_{i}") for i in range(2))
            with self.assertRaisesRegex(UserError, message + places):
                export.load_components(directory)
        with self.assertRaisesRegex(UserError, f"; give {self.directory}.$"):
            export.load_components(self.directory / "orbax")

    @parameterized.parameters(
        ({"step": np.zeros(3), "params": np.ones(2)}, "params, step"),
        ({"components": np.ones(2)}, "components"),
        ([np.ones(2)], "list"),
    )
    def test_a_checkpoint_of_something_else(self, state, held):
        with checkpoint.Checkpointer(self.directory / "orbax") as checkpointer:
            checkpointer.save(0, state, {})
        message = (
            f"holds no saved components: the checkpoint in .* has {held}. Give a directory that"
        )
        with self.assertRaisesRegex(UserError, message):
            export.load_components(self.directory)

    def test_components_that_no_decomposition_saved(self):
        self.save(1)
        with self.assertRaisesRegex(UserError, "config has no .*'paths'.*load_components reads"):
            apd_jax.load(self.directory, lambda params, x: x)


if __name__ == "__main__":
    absltest.main()
