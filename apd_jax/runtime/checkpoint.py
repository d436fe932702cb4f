"""Checkpoints of a run. This is the only file that uses orbax.

A checkpoint is a directory `<step>/` with the state, the caller's metadata and a record of every
leaf (`checksum.py`). A restored state is bit-identical to the saved one; otherwise the checkpoint
is reported as broken, and the one before it is used.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from apd_jax.errors import UserError
from apd_jax.runtime import checksum, mesh, orbax_noise, paths
from apd_jax.runtime.closing import Closing


class CheckpointError(UserError):
    """A checkpoint could not be written, or no checkpoint on disk is intact."""


class Restored(NamedTuple):
    """A restored checkpoint.

    Attributes:
      step: the step it was saved under.
      state: the state, a pytree like the abstract state, on the devices that this names.
      metadata: the metadata given to `save`.
    """

    step: int
    state: Any
    metadata: dict[str, Any]


class Checkpointer(Closing):
    """Saves and restores the state of a run in one directory.

    `save` copies the state to the host and returns. A thread computes checksums and writes, one
    save at a time. A step appears in the directory by a rename, after all of it is written. All
    processes of a run make the same calls: process 0 writes, and all read from a shared disk.
    """

    def __init__(self, directory: str | os.PathLike[str], *, max_to_keep: int = 3):
        """Open a directory, which is created if missing.

        Args:
          directory: directory that holds checkpoints and nothing else.
          max_to_keep: number of newest checkpoints to keep, >= 1. With 1 there is no fallback for
            a broken checkpoint.
        """
        if max_to_keep < 1:
            raise UserError(f"max_to_keep must be at least 1, got {max_to_keep}.")
        self._directory = paths.local(directory)
        self._writes = jax.process_index() == 0
        if self._writes:
            self._make()
            paths.remove_all(self._directory, "*.orbax-checkpoint-tmp*")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=max_to_keep,
            create=False,
            cleanup_tmp_directories=self._writes,
            enable_async_checkpointing=False,  # our thread takes the checksums off the loop too
            lightweight_initialize=True,  # a broken step must not hide the others
            multiprocessing_options=_alone(),
        )
        orbax_noise.silence()
        self._closing = contextlib.ExitStack()
        plain = self._closing.enter_context(paths.plain(self._directory))
        self._manager = ocp.CheckpointManager(plain, options=options)
        self._closing.callback(self._manager.close)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None
        self._whole: set[int] = set()  # written or verified by this object
        self._broken: set[int] = set()  # found broken; removed by the next save

    def _make(self) -> None:
        """Create the directory."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"The directory {self._directory} cannot be created ({error.strerror}): move what "
                "is in its place, free disk space, or make the directory above it writable."
            ) from error

    def steps(self) -> list[int]:
        """The steps on disk, oldest first, intact or broken."""
        if not self._directory.is_dir():
            return []
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdigit())

    def save(self, step: int, state: Any, metadata: Mapping[str, Any]) -> None:
        """Save `state` under `step`; its buffers may be donated as soon as this returns.

        Waits for the previous save. A step that this object saved or restored is not written again.

        Args:
          step: step of the state, int >= 0.
          state: pytree of arrays, none of size zero.
          metadata: a JSON object, which `restore_latest` returns.

        Raises:
          CheckpointError: the *previous* save failed.
          UserError: `step` is on disk from a run that was not restored by this object.
        """
        self.wait()
        if step in self._whole:
            return
        # Process 0 may have written this step before another process arrives here.
        if self._writes and step in self.steps() and step not in self._broken:
            raise UserError(
                f"{self._directory} holds a checkpoint of step {step} from another run: call "
                "restore_latest before the first save, or choose another directory."
            )
        plain = json.loads(json.dumps(metadata))  # fails here, not in the thread
        host = to_host(state)
        self._whole.add(step)
        if self._writes:
            self._pending = self._thread.submit(self._write, step, host, plain)

    def wait(self) -> None:
        """Wait until the last save is on disk.

        Raises:
          CheckpointError: the save failed (disk full, ...). Earlier checkpoints are untouched.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()  # raises what the thread raised

    def close(self) -> None:
        """Wait for the last save, raise its error if it failed, and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._closing.close()

    def restore_latest(self, abstract_state: Any | None) -> Restored | None:
        """Restore the newest intact checkpoint, bit for bit.

        A broken checkpoint (files truncated, changed or missing) is named in a warning, and the one
        before it is tried. The next save removes it.

        Args:
          abstract_state: pytree of `jax.ShapeDtypeStruct` (as from `jax.eval_shape`) or arrays,
            with the structure, shapes, dtypes and, if a leaf has one, sharding of the result; or a
            function that gives it, called if there are checkpoints. None restores whatever was
            saved, with tuples as lists and NamedTuples as dicts.

        Returns:
          The checkpoint, or None if there is none.

        Raises:
          CheckpointError: there are checkpoints, but none is intact.
          UserError: the newest intact checkpoint holds other leaves, shapes or dtypes.
        """
        self.wait()
        found, reasons, steps = None, {}, self.steps()
        if steps and callable(abstract_state):
            abstract_state = abstract_state()
        for step in reversed(steps):
            try:
                found = self._read(step, abstract_state)
                break
            except checksum.Damaged as error:
                reasons[step] = str(error)
                path = self._directory / str(step)
                logging.warning("Checkpoint %s is damaged and was skipped: %s", path, error)
        if jax.process_count() > 1:  # all must have restored, and from the same step
            newest = np.int32(-1 if found is None else found.step)
            reason = f"Processes see different checkpoints: is {self._directory} a shared disk?"
            multihost_utils.assert_equal(newest, reason)
        if found is None and reasons:
            lines = "".join(f"\n  step {step}: {reason}" for step, reason in reasons.items())
            raise CheckpointError(
                f"No checkpoint in {self._directory} is intact:{lines}\n"
                "Restore a good copy, or delete the directory and start over."
            )
        self._broken = set(reasons)
        if found is not None:
            self._whole.add(found.step)
        return found

    def _write(self, step: int, host: Any, metadata: dict[str, Any]) -> None:
        """Write a checkpoint; runs in the thread."""
        try:
            for broken in self._broken:
                shutil.rmtree(self._directory / str(broken))
            if self._broken:
                self._manager.reload()
            self._broken = set()
            record = checksum.seal(host, metadata)
            items = {"state": ocp.args.StandardSave(host), "metadata": ocp.args.JsonSave(record)}
            # Without force=True, orbax silently skips a step below the newest that it has seen.
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:  # a full disk raises OSError, or ValueError from tensorstore
            self._whole.discard(step)
            raise CheckpointError(
                f"The checkpoint of step {step} cannot be written to {self._directory}: "
                f"{_brief(error)}\nEarlier checkpoints are untouched (steps {self.steps()}). Free "
                "disk space or make the directory writable, then rerun the command to resume."
            ) from error

    def _read(self, step: int, abstract_state: Any | None) -> Restored:
        """Read a checkpoint; raise `Damaged` if it differs from what was written."""
        with _damage():
            asked = ocp.args.Composite(metadata=ocp.args.JsonRestore())
            record = self._manager.restore(step, args=asked)["metadata"]
            checksum.check_record(record)
        blank = None
        if abstract_state is not None:
            path = self._directory / str(step)
            _check_layout(path, record["layout"], checksum.layout(abstract_state))
            blank = jax.tree.map(
                lambda like: np.broadcast_to(np.zeros((), like.dtype), like.shape), abstract_state
            )
        with _damage():
            asked = ocp.args.Composite(state=ocp.args.StandardRestore(blank))
            host = self._manager.restore(step, args=asked)["state"]
            checksum.check_leaves(record, host)
        like = host if abstract_state is None else abstract_state
        shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(like)]
        leaves, structure = jax.tree.flatten(host)
        placed = [mesh.put(*pair) for pair in zip(leaves, shardings, strict=True)]
        return Restored(step, jax.tree.unflatten(structure, placed), record["metadata"])


def to_host(tree: Any) -> Any:
    """Copy every leaf to a new numpy array; a view would prevent donation of its buffer.

    Leaves that are distributed over processes are gathered, so all processes must call this.
    """

    def local(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return leaf

    arrays = jax.device_get(jax.tree.map(local, tree))  # all transfers at once; views on a CPU
    return jax.tree.map(lambda leaf: np.array(leaf, order="C"), arrays)


def _check_layout(path: pathlib.Path, saved: dict[str, str], asked: dict[str, str]) -> None:
    names = sorted(n for n in saved.keys() | asked.keys() if saved.get(n) != asked.get(n))
    if names:
        lines = [
            f"\n  {n}: {saved.get(n, 'absent')} -> {asked.get(n, 'absent')}" for n in names[:9]
        ]
        raise UserError(
            f"{path} is intact but holds another state, saved -> requested:{''.join(lines)}\n"
            "It was written with another config or version: choose another directory, or delete "
            "this one."
        )


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Convert any error that orbax and tensorstore raise for a damaged file to `Damaged`."""
    try:
        yield
    except checksum.Damaged:
        raise
    except Exception as error:
        raise checksum.Damaged(_brief(error)) from error


def _brief(error: Exception) -> str:
    """The type of an error with the start and the end of its text.

    Tensorstore names the reason last, except for long notes `[key='value']` in any order.
    """
    text = " ".join(str(error).split())
    text = re.split(r" \[[\w ]+='", text, maxsplit=1)[0]
    text = text if len(text) <= 300 else f"{text[:100]} ... {text[-200:]}"
    return f"{type(error).__name__}: {text}"


def _alone() -> ocp.options.MultiprocessingOptions:
    """Options that keep orbax from waiting for other processes; only process 0 writes."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
