"""Finished components on disk: for `load_components`, and as plain files for everyone else."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from apd_jax.errors import UserError
from apd_jax.runtime import checksum, paths
from apd_jax.runtime.checkpoint import Checkpointer, CheckpointError, to_host

_FILES = {"orbax", "components.safetensors", "config.json"}


class Saved(NamedTuple):
    """What `load_components` reads.

    Attributes:
      components: `{site: {"U": U, "V": V}}`.
      target: the target's params, with tuples come back as lists and NamedTuples as dicts.
      config: a JSON object.
      check: more arrays, such as outputs to check a network with; None where none were given.
    """

    components: dict[str, dict[str, jax.Array]]
    target: Any
    config: dict[str, Any]
    check: Any


def save_components(
    directory: str | os.PathLike[str],
    components: Mapping[str, Any],
    target_params: Any,
    config: Mapping[str, Any],
    check: Any = None,
) -> None:
    """Write finished components with their target and config, for `load_components` and others.

    The directory holds `orbax/`, `components.safetensors` (`<site>.U`, `<site>.V` and
    `target/<name>`) and `config.json`. All of it is written aside and then renamed; other files in
    a directory that was saved to before stay.

    Args:
      directory: new, empty, or saved to before (what was saved is then replaced).
      components: site -> factors with arrays `U` and `V`.
      target_params: pytree of arrays.
      config: a JSON object.
      check: pytree of more arrays to keep beside.

    Raises:
      CheckpointError: it cannot be written; what was in `directory` before is untouched.
      UserError: `directory` holds other files, or isn't on this machine.
    """
    factors = {site: {"U": both.U, "V": both.V} for site, both in components.items()}
    everything = {"components": factors, "target": target_params}
    host = to_host(everything if check is None else everything | {"check": check})
    if jax.process_index() != 0:
        return
    directory = paths.local(directory).resolve()
    plain_config = json.loads(json.dumps(config))
    aside, _ = _names_beside(directory)
    try:
        _clear(directory)
        _check_ours(directory)
        aside.mkdir(parents=True)
        _write_components(aside, host, plain_config)
        _replace_directory(aside, directory)
    except (CheckpointError, OSError) as error:
        raise CheckpointError(
            f"The components cannot be written to {directory}: {error}"
        ) from error
    finally:
        _clear(directory)


def load_components(directory: str | os.PathLike[str]) -> Saved:
    """Read what `save_components` wrote.

    Raises:
      CheckpointError: files were changed, cut short or lost since.
      UserError: `directory` was not written by `save_components`.
    """
    path = paths.local(directory) / "orbax"
    if not path.is_dir():
        raise UserError(f"{directory} holds no saved components: there is no {path}.")
    with Checkpointer(path) as checkpointer:
        restored = checkpointer.restore_latest(None)
    if restored is None:
        raise CheckpointError(f"The components in {directory} are lost: {path} is empty.")
    state = restored.state
    return Saved(state["components"], state["target"], restored.metadata, state.get("check"))


def _write_components(directory: pathlib.Path, host: Any, config: dict[str, Any]) -> None:
    with Checkpointer(directory / "orbax") as checkpointer:
        checkpointer.save(0, host, config)
    arrays = {f"{site}.{k}": v for site, uv in host["components"].items() for k, v in uv.items()}
    params = jax.tree_util.tree_leaves_with_path(host["target"])
    arrays |= {f"target/{checksum.leaf_name(path)}": leaf for path, leaf in params}
    _write_plain(directory / "components.safetensors", arrays)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _write_plain(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file of safetensors and hold what is read back against the arrays.

    `save_file` writes the memory of an array as it lies there, whatever its strides say.

    Raises:
      CheckpointError: the file holds something else.
    """
    in_order = {name: np.array(array, order="C") for name, array in arrays.items()}
    safetensors.numpy.save_file(in_order, path)
    written = dict(safetensors.deserialize(path.read_bytes()))
    for name, array in in_order.items():
        found = written.get(name, {"shape": None, "data": b""})
        if found["shape"] != list(array.shape) or bytes(found["data"]) != array.tobytes():
            raise CheckpointError(f"{path.name} does not hold {name} as it was written")


def _names_beside(directory: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Where the next content of a directory is made, and where the one before goes."""
    short = os.fsdecode(os.fsencode(directory.name)[:200])  # names have up to 255 bytes
    return directory.with_name(f".{short}.new"), directory.with_name(f".{short}.before")


def _clear(directory: pathlib.Path) -> None:
    """Clear away what was left beside a directory that may have been half replaced."""
    aside, before = _names_beside(directory)
    if not directory.exists():
        with contextlib.suppress(FileNotFoundError):
            before.rename(directory)
    for leftover in (aside, before):
        shutil.rmtree(leftover, ignore_errors=True)


def _check_ours(directory: pathlib.Path) -> None:
    names = paths.names_in(directory)
    if names and not names >= _FILES:
        raise UserError(f"{directory} holds other files, {sorted(names)}: take a new directory.")


def _replace_directory(new: pathlib.Path, directory: pathlib.Path) -> None:
    """Rename `new` to `directory` and that one out of the way; files of others are in both."""

    def ours(folder, unused_names):
        return _FILES if pathlib.Path(folder) == directory else ()

    if directory.exists():
        shutil.copytree(directory, new, symlinks=True, ignore=ours, dirs_exist_ok=True)
        directory.rename(_names_beside(directory)[1])
    new.rename(directory)
