"""Finished components on disk: for `load_components`, and as plain files for other programs."""

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
from apd_jax.runtime import paths
from apd_jax.runtime.checkpoint import Checkpointer, CheckpointError, to_host
from apd_jax.sites import leaf_names

_FILES = {"orbax", "components.safetensors", "config.json"}


class Saved(NamedTuple):
    """Data that `load_components` reads.

    Attributes:
      components: factors, `{site: {"U": U, "V": V}}`.
      target: the target's parameters, with tuples as lists and NamedTuples as dicts.
      config: a JSON object.
      check: further arrays, such as outputs to check a network with, and arrays of learned gates
        under `gates`; None if none were saved.
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
    """Write finished components with their target and config.

    The directory gets `orbax/`, `components.safetensors` (`<site>.U`, `<site>.V`, `target/<name>`
    and, of learned gates, `gates/<name>`) and `config.json`. Everything is written to a temporary
    directory that is then renamed. Other files in a directory with saved components stay.

    Args:
      directory: a directory that is new, empty, or has saved components, which are replaced.
      components: factors with arrays `U` and `V` by site.
      target_params: pytree of arrays.
      config: a JSON object.
      check: pytree of further arrays to save; `gates` in a dict are the arrays of learned gates.

    Raises:
      CheckpointError: the components cannot be written; `directory` is untouched.
      UserError: `directory` holds other files, or is not on this machine.
    """
    directory = paths.local(directory)
    factors = {site: {"U": both.U, "V": both.V} for site, both in components.items()}
    everything = {"components": factors, "target": target_params}
    host = to_host(everything if check is None else everything | {"check": check})
    if jax.process_index() != 0:
        return
    directory = directory.resolve()
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
        with contextlib.suppress(OSError):  # which would hide the error itself
            _clear(directory)


def load_components(directory: str | os.PathLike[str]) -> Saved:
    """Read components that `save_components` wrote.

    Raises:
      CheckpointError: files were changed, truncated or lost.
      UserError: `directory` was not written by `save_components`.
    """
    path = paths.local(directory) / "orbax"
    if not os.path.isdir(path):  # also where a name is too long
        way = _saved_near(path.parent)
        raise UserError(f"{directory} holds no saved components: there is no {path}{way}.")
    with Checkpointer(path) as checkpointer:
        restored = checkpointer.restore_latest(None)
    if restored is None:
        raise CheckpointError(f"The components in {directory} are lost: {path} is empty.")
    state, config = restored.state, restored.metadata
    is_ours = isinstance(state, Mapping) and {"components", "target"} <= set(state)
    if not is_ours or not isinstance(config, Mapping):
        held = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise UserError(
            f"{directory} holds no saved components: the checkpoint in {path} has {held:.200}. "
            "Give a directory that Decomposition.save wrote."
        )
    return Saved(state["components"], state["target"], dict(config), state.get("check"))


def _saved_near(directory: pathlib.Path) -> str:
    """Where saved components are, inside of a directory or around it, in words; or nothing."""
    try:
        if directory.name == "orbax" and paths.names_in(directory.parent) >= _FILES:
            return f"; give {directory.parent}"
        found = [path.parent for depth in ("*", "*/*") for path in directory.glob(f"{depth}/orbax")]
    except OSError:  # a name that is too long, a directory that can't be read
        return ""
    return (
        f"; there are saved components in {', '.join(map(str, sorted(found)[:3]))}" if found else ""
    )


def _write_components(directory: pathlib.Path, host: Any, config: dict[str, Any]) -> None:
    with Checkpointer(directory / "orbax") as checkpointer:
        checkpointer.save(0, host, config)
    arrays = {f"{site}.{k}": v for site, uv in host["components"].items() for k, v in uv.items()}
    params = zip(leaf_names(host["target"]), jax.tree.leaves(host["target"]), strict=True)
    arrays |= {f"target/{name}": leaf for name, leaf in params}
    check = host.get("check")
    gates = check.get("gates", {}) if isinstance(check, dict) else {}
    arrays |= {f"gates/{name}": leaf for name, leaf in gates.items()}
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
    """The temporary paths of a directory's next and previous content."""
    short = os.fsdecode(os.fsencode(directory.name)[:200])  # names have up to 255 bytes
    return directory.with_name(f".{short}.new"), directory.with_name(f".{short}.before")


def _clear(directory: pathlib.Path) -> None:
    """Remove temporary directories of an earlier, possibly interrupted, replacement."""
    aside, before = _names_beside(directory)
    if not directory.exists():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            before.rename(directory)
    for leftover in (aside, before):
        shutil.rmtree(leftover, ignore_errors=True)


def _check_ours(directory: pathlib.Path) -> None:
    names = paths.names_in(directory)
    if names and not names >= _FILES:
        raise UserError(f"{directory} holds other files, {sorted(names)}: choose a new directory.")


def _replace_directory(new: pathlib.Path, directory: pathlib.Path) -> None:
    """Rename `new` to `directory`, after copying the user's own files into `new`."""

    def ours(folder, unused_names):
        return _FILES if pathlib.Path(folder) == directory else ()

    if directory.exists():
        shutil.copytree(directory, new, symlinks=True, ignore=ours, dirs_exist_ok=True)
        directory.rename(_names_beside(directory)[1])
    new.rename(directory)
