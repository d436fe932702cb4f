"""A loop of a run in its directory: from the newest whole checkpoint to the end, or to a stop.

Letters: S seeds side by side.
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from apd_jax.errors import UserError
from apd_jax.runtime import loop, memory
from apd_jax.runtime.checkpoint import Checkpointer, Restored, to_host
from apd_jax.runtime.checksum import fingerprint
from apd_jax.runtime.metric_writer import MetricWriter
from apd_jax.runtime.preemption import StopFlag
from apd_jax.runtime.progress import Progress


@dataclasses.dataclass(frozen=True)
class Stage:
    """A loop of a run, and how it is saved and logged.

    Attributes:
      name: what it does, for people.
      directory: gets checkpoints/, metrics.jsonl and tensorboard/.
      make_state: gives the state before the first step, every leaf [S, ...].
      make_step: gives the step function.
      context: what the steps read, every leaf [S, ...]; a checkpoint holds its checksum.
      seeds: uint32 [S].
      steps, chunk_steps, save_every: see `loop.run_steps`.
      max_to_keep: number of newest checkpoints that stay.
      config: a JSON object that every checkpoint holds, for whoever finds one on its own.
      tensorboard, wandb: see `MetricWriter`.
      feed: see `loop.run_steps`.
      observer: told of the metrics too, and may ask to stop.
      make_between: gives what is done between steps.
    """

    name: str
    directory: os.PathLike[str]
    make_state: Callable[[], Any]
    make_step: Callable[[], loop.StepFn]
    context: Any
    seeds: jax.Array
    steps: int
    chunk_steps: int
    save_every: int
    max_to_keep: int
    config: Mapping[str, Any]
    tensorboard: bool = True
    wandb: Mapping[str, Any] | None = None
    feed: loop.Feed | None = None
    observer: loop.Observer = dataclasses.field(default_factory=loop.Observer)
    make_between: Callable[[], loop.Between | None] = lambda: None


def run(stage: Stage, flag: StopFlag) -> tuple[Any, float]:
    """Go on with a stage to its end; where it is at its end, only say so.

    Returns:
      The state after the last step, and the seconds that all commands together spent on it.

    Raises:
      loop.Stopped: `flag` was raised; the work so far is saved.
      loop.Diverged: something stopped being finite; names the last good checkpoint.
      CheckpointError: a checkpoint can't be written, or there are some but none is whole.
      UserError: the checkpoints were made with another context.
      OSError: the metrics can't be written.
    """
    directory = pathlib.Path(stage.directory) / "checkpoints"
    metadata = {"config": stage.config, "context": fingerprint(to_host(stage.context))}
    with Checkpointer(directory, max_to_keep=stage.max_to_keep) as checkpointer:
        restored = checkpointer.restore_latest(jax.eval_shape(stage.make_state))
        _check_context(stage, restored, metadata)
        done = restored.step if restored else 0
        if restored and done >= stage.steps:
            logging.info("%s: all %d steps are done", stage.name, stage.steps)
            return restored.state, restored.metadata["seconds"]
        if flag.requested:
            state = restored.state if restored else stage.make_state()
            raise loop.Stopped(done, stage.name, state=state)
        if restored:
            logging.info("%s: going on from step %d of %d", stage.name, done, stage.steps)
        with (
            MetricWriter(
                stage.directory,
                wandb=stage.wandb,
                tensorboard=stage.tensorboard,
                resume_step=done if restored else None,
            ) as writer,
            Progress(stage.steps, stage.name, initial=done) as progress,
        ):
            session = Session(stage, metadata, restored, checkpointer, writer, progress, flag)
            return _run_steps(stage, restored, session), session.seconds


def _check_context(stage: Stage, restored: Restored | None, metadata: Mapping[str, Any]) -> None:
    """Raise UserError where a checkpoint belongs to another context: its numbers would be mixed."""
    if restored and restored.metadata.get("context", metadata["context"]) != metadata["context"]:
        raise UserError(
            f"{stage.name}: step {restored.step} in {stage.directory} was made with another target "
            "than the one that is there now, trained again on another machine or version perhaps: "
            "put back the target/ that belongs to it, or delete the directory and start over."
        )


def _run_steps(stage: Stage, restored: Restored | None, session: "Session") -> Any:
    """The state after the last step."""
    try:
        return loop.run_steps(
            stage.make_step(),
            stage.context,
            restored.state if restored else stage.make_state(),
            stage.seeds,
            steps=stage.steps,
            chunk_steps=stage.chunk_steps,
            save_every=stage.save_every,
            observer=session,
            feed=stage.feed,
            between=stage.make_between(),
        )
    except loop.Stopped as stopped:
        raise loop.Stopped(stopped.step, stage.name, state=stopped.state) from stopped
    except loop.Diverged as error:
        raise loop.Diverged(f"{stage.name}: {error}. {session.last_good()}") from error


class Session(loop.Observer):
    """Puts what a loop tells into files: metrics, progress and checkpoints.

    Attributes:
      seconds: spent up to the last save, those before a resume included.
    """

    def __init__(
        self,
        stage: Stage,
        metadata: Mapping[str, Any],
        restored: Restored | None,
        checkpointer: Checkpointer,
        writer: MetricWriter,
        progress: Progress,
        flag: StopFlag,
    ):
        self._metadata, self._directory = metadata, pathlib.Path(stage.directory)
        self._checkpointer, self._writer, self._progress = checkpointer, writer, progress
        self._flag, self._observer = flag, stage.observer
        self.seconds = restored.metadata["seconds"] if restored else 0.0
        self._start = time.monotonic() - self.seconds
        self._saved = restored.step if restored else None
        self._last: tuple[int, float] | None = None

    def on_metrics(self, step, metrics):
        now = time.monotonic()
        row = {name: value.tolist() for name, value in metrics.items()}
        row["learning_rate"] = float(metrics["learning_rate"][0])
        if self._last is not None:
            row["steps_per_second"] = (step - self._last[0]) / max(now - self._last[1], 1e-9)
        self._last = step, now
        self._writer.write(step, row)
        shown = {name.removeprefix("loss/"): v for name, v in metrics.items() if "loss" in name}
        self._progress.update(step, **shown)
        self._observer.on_metrics(step, metrics)

    def save(self, step, state):
        self.seconds = time.monotonic() - self._start
        memory.give_back()  # what the checkpoint before this one took
        self._checkpointer.save(step, state, {"seconds": self.seconds, **self._metadata})
        self._saved = step
        self._observer.save(step, state)

    def should_stop(self):
        return self._flag.requested or self._observer.should_stop()

    def last_good(self) -> str:
        """A sentence that names the newest checkpoint of this run."""
        self._checkpointer.wait()
        if self._saved is None:
            return "No checkpoint had been saved."
        return f"The last good checkpoint is {self._directory / 'checkpoints' / str(self._saved)}"
