"""Metrics of a run: metrics.jsonl always, TensorBoard and Weights & Biases on request."""

import contextlib
import importlib
import json
import math
import os
import pathlib
import time
import types
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from apd_jax.errors import UserError
from apd_jax.runtime.closing import Closing
from apd_jax.runtime.workdir import atomic_write_text

_SECONDS_BETWEEN_FLUSHES = 5.0
_NO_WANDB = (
    "Weights & Biases does not start ({reason}): log in with `wandb login`, set wandb.mode to "
    "'offline', or leave wandb.project unset."
)


class MetricWriter(Closing):
    """Writes the metrics of a loop, one row per step; does nothing except in process 0.

    metrics.jsonl has one object per line, `{"step": 100, "loss/total": [one per seed], ...}`, with
    null for numbers that are not finite. TensorBoard and Weights & Biases get one curve per number:
    `loss/total/seed_0`, ... and their mean as `loss/total`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        wandb: Mapping[str, Any] | None = None,
        tensorboard: bool = True,
        resume_step: int | None = None,
    ):
        """Open the files, and drop the rows that the run will write again.

        Args:
          directory: directory for `metrics.jsonl` and `tensorboard/`.
          wandb: arguments of `wandb.init` (project, entity, name, mode, config, ...); those that
            are None are omitted. Without a project, Weights & Biases is off.
          tensorboard: whether to write TensorBoard events.
          resume_step: step at which the run resumes; later rows are dropped. None for a new run
            drops all rows.

        Raises:
          UserError: a wandb project is set and wandb is not installed.
          OSError: wandb does not start, or the files cannot be written.
        """
        self._closing = contextlib.ExitStack()
        self._file = self._events = self._run = None
        directory = pathlib.Path(directory)
        self._path = directory / "metrics.jsonl"
        if jax.process_index() != 0:
            return
        directory.mkdir(parents=True, exist_ok=True)
        keep = -1 if resume_step is None else resume_step
        if wandb and wandb.get("project"):
            self._run = _open_wandb(directory, wandb, fresh=resume_step is None)
            self._closing.callback(self._run.finish)
        with _explained(self._path):
            _drop_rows_after(self._path, keep)
            lines = open(self._path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115, see close
            self._file = self._closing.enter_context(lines)
            if tensorboard:
                self._events = _Events(directory / "tensorboard", purge_step=keep + 1)
                self._closing.callback(self._events.close)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one row.

        Args:
          step: step of the row, larger than that of the previous row.
          metrics: a scalar for each name, or an array [S] or list with one number per seed.

        Raises:
          OSError: the row cannot be written, for instance because the disk is full.
        """
        if self._file is None:
            return
        values = {name: np.asarray(value) for name, value in metrics.items()}
        row = {"step": int(step)} | {name: _plain(value) for name, value in values.items()}
        curves = _curves(values)
        with _explained(self._path):
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            if self._events is not None:
                self._events.write(step, curves)
        if self._run is not None:
            self._run.log(curves, step=int(step))

    def close(self) -> None:
        """Flush and close everything; may be called twice."""
        self._file = self._events = self._run = None
        with _explained(self._path):
            self._closing.close()


class _Events:
    """TensorBoard events, written in this thread: tensorboardX's own hangs on a full disk."""

    def __init__(self, directory: pathlib.Path, *, purge_step: int):
        """Open a new file, under which TensorBoard hides all steps >= purge_step of older ones."""
        # Imports torch where that is installed, which takes seconds.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        directory.mkdir(exist_ok=True)
        # File names sort by time, but by default in whole seconds, which two runs may share.
        self._writer = EventsWriter(str(directory / "events"), f".{time.time_ns()}")
        self._flushed = -math.inf
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(step=purge_step, session_log=start)

    def write(self, step: int, curves: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in curves.items()]
        self._add(step=int(step), summary=self._summary(value=values))

    def close(self) -> None:
        self._writer.close()

    def _add(self, **fields: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), **fields))
        if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:  # each waits for the disk
            self._writer.flush()
            self._flushed = time.monotonic()


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
    """Add the path and a remedy to errors of writing: those of a full disk name no file."""
    try:
        yield
    except OSError as error:
        reason = f"the metrics cannot be written ({error.strerror}): free disk space, or move "
        reason += "what is in the way, then rerun the command to resume from the last checkpoint"
        raise OSError(error.errno, reason, str(path)) from error


def import_wandb(project: str) -> types.ModuleType:
    """The wandb module, for runs of `project`.

    Raises:
      UserError: wandb is not installed.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            f"wandb.project is {project!r}, but Weights & Biases is not installed: "
            "pip install apd_jax[wandb], or leave wandb.project unset."
        ) from error


def check_login(project: str, mode: str | None) -> None:
    """Raise UserError if a run of `project` could not be logged, before any work is done.

    On a terminal, Weights & Biases itself asks for a key.
    """
    wandb = import_wandb(project)
    mode = mode or os.environ.get("WANDB_MODE") or "online"
    if mode not in ("online", "offline", "disabled"):
        raise UserError(f"wandb.mode must be online, offline or disabled, got {mode!r}")
    if mode != "online":
        return
    try:
        if wandb.login():
            return
        reason = "no key is known"
    except Exception as error:  # a refusal, or no network
        reason = " ".join(str(error).split())
    raise UserError(_NO_WANDB.format(reason=reason))


def _open_wandb(directory: pathlib.Path, settings: Mapping[str, Any], *, fresh: bool) -> Any:
    """Start a Weights & Biases run, or resume the one whose id is saved in `wandb_id`."""
    wandb = import_wandb(settings["project"])
    id_file = directory / "wandb_id"
    if fresh or not id_file.exists():
        atomic_write_text(id_file, uuid.uuid4().hex)
    given = {name: value for name, value in settings.items() if value is not None}
    # Weights & Biases ignores steps that it already has after a resume: its steps only increase.
    fixed = {"id": id_file.read_text(), "resume": "allow", "dir": directory}
    try:
        return wandb.init(**fixed | given)
    except wandb.Error as error:
        raise UserError(_NO_WANDB.format(reason=error)) from error


def _drop_rows_after(path: pathlib.Path, step: int) -> None:
    """Rewrite the file without rows after `step`, and without truncated rows."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _step(line) <= step]
    if len(kept) < len(lines):
        atomic_write_text(path, "".join(kept))
        logging.info("Dropped %d rows after step %d of %s.", len(lines) - len(kept), step, path)


def _step(line: str) -> float:
    """The step of a row, or infinity for a truncated row."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf


def _plain(value: np.ndarray) -> Any:
    """Convert numbers for JSON: nested lists, with null for those that are not finite."""
    if value.dtype.kind in "iub":
        return value.tolist()
    value = value.astype(np.float64)
    plain = value.astype(object)
    plain[~np.isfinite(value)] = None
    return plain.tolist()


def _curves(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """One number per curve: the mean over seeds and, with several seeds, each seed."""
    curves = {}
    for name, value in values.items():
        curves[name] = float(np.mean(value))
        if value.size > 1:
            curves |= {f"{name}/seed_{i}": float(v) for i, v in enumerate(value.ravel())}
    return curves
