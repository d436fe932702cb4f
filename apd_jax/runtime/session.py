"""The run of a training, in memory or in a directory, to its last step or an early end.

Letters: S seeds side by side.
"""

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from apd_jax.errors import UserError
from apd_jax.runtime import loop, mesh, metric_names
from apd_jax.runtime.outcome import Diverged, EndedEarly, Outcome, Stopped
from apd_jax.runtime.preemption import StopFlag
from apd_jax.runtime.progress import Progress
from apd_jax.runtime.stores import Directory, Keeping, Memory, Store


def fit(
    training: loop.Training,
    directory: str | os.PathLike[str] | None = None,
    *,
    name: str,
    keeping: Keeping,
    flag: StopFlag | None = None,
    observer: loop.Observer | None = None,
) -> Outcome:
    """Run a training to its end; in a directory, resume from the newest whole checkpoint there.

    Args:
      training: the training to run.
      directory: gets checkpoints/, metrics.jsonl and tensorboard/; None for a run in memory.
      name: what the training does, for messages.
      keeping: how often it is saved and logged.
      flag: requests a stop between chunks.
      observer: receives metrics and states too, and may request a stop.

    Returns:
      The state after the last step, and the metrics.

    Raises:
      Stopped: a stop was requested; the work so far is saved where there is a directory.
      Diverged: something is no longer finite; names the last good checkpoint.
      DataFailed: the data raised an error; the work so far is saved where there is a directory.
      CheckpointError: a checkpoint can't be written, or there are some but none is whole.
      UserError: the checkpoints were made with another context.
      OSError: the metrics can't be written.
      Exception, SystemExit: what the observer raised; the work so far is saved where there is a
        directory.

      All but those before the first step carry the last finite state as their `outcome`.
    """
    store: Store = Memory(training.steps)
    if directory is not None:
        store = Directory(directory, training, name, keeping)
    return fit_in(store, training, name=name, keeping=keeping, flag=flag, observer=observer)


def fit_in(
    store: Store,
    training: loop.Training,
    *,
    name: str,
    keeping: Keeping,
    flag: StopFlag | None = None,
    observer: loop.Observer | None = None,
) -> Outcome:
    """Run a training to its end, and keep it in a store; see `fit`."""
    flag, observer = flag or StopFlag(), observer or loop.Observer()
    with store:
        restored = store.restore(training)
        done = restored.step if restored else 0
        seconds = restored.metadata["seconds"] if restored else 0.0
        if restored and done >= training.steps:
            logging.info("%s: all %d steps are done", name, training.steps)
            state = mesh.gathered(training.layout, restored.state)
            return Outcome(state, done, store.rows(done), seconds)
        state = restored.state if restored else None
        if flag.asked():
            stopped = Stopped(done, name)
            state = training.init_state() if state is None else state
            state = mesh.gathered(training.layout, state)
            stopped.outcome = Outcome(state, done, store.rows(done), seconds)
            raise stopped
        if state is not None:
            logging.info("%s: resuming from step %d of %d", name, done, training.steps)
        with store.log(done), Progress(training.steps, name, initial=done) as progress:
            recorder = Recorder(store, progress, flag, observer, seconds)
            return _run(training, state, name, keeping, recorder)


def _run(
    training: loop.Training, state: Any, name: str, keeping: Keeping, recorder: "Recorder"
) -> Outcome:
    """The outcome after the last step."""
    ended: EndedEarly | None = None
    try:
        state = loop.run_steps(
            training,
            training.init_state() if state is None else state,
            chunk_steps=keeping.chunk_steps,
            save_every=keeping.save_every,
            observer=recorder,
        )
    except EndedEarly as error:
        ended = error
    recorder.finish()
    outcome: Outcome | None
    if ended is None:
        rows = recorder.store.rows(training.steps)
        outcome = Outcome(state, training.steps, rows, recorder.seconds)
    else:
        early = _with_outcome(ended, name, recorder)
        outcome = early.outcome
    if recorder.failure is not None and outcome is not None:
        raise _with_note(recorder.failure, outcome, name)
    if ended is not None:
        raise early from ended
    assert outcome is not None
    return outcome


def _with_note(
    failure: Exception | SystemExit, outcome: Outcome, name: str
) -> Exception | SystemExit:
    """The error of an observer or a store, as it is, with what was trained as its `outcome`."""
    with contextlib.suppress(AttributeError, TypeError):  # of a class with slots
        failure.outcome = outcome  # type: ignore[union-attr]
    failure.add_note(f"{name}: because of this, training ended after step {outcome.step}.")
    return failure


def _with_outcome(ended: EndedEarly, name: str, recorder: "Recorder") -> EndedEarly:
    """The same error with the training's name, and with the last finite state as its outcome."""
    store = recorder.store
    if isinstance(ended, Stopped):
        error: EndedEarly = Stopped(ended.step, name)
    elif isinstance(ended, Diverged):
        error = Diverged(f"{name}: {ended}. {store.last_good()}", places=ended.places)
    else:
        error = type(ended)(f"{name}: {ended}", step=ended.step)
    if ended.step is None or ended.state is None:
        step, state = store.saved()
    else:
        step, state = ended.step, ended.state
    if state is not None:
        state = jax.tree.map(jnp.asarray, state)
        error.outcome = Outcome(state, step, store.rows(step), recorder.seconds)
    return error


class Recorder(loop.Observer):
    """Passes what the loop reports to a store, the progress bar and another observer.

    Attributes:
      store: where metrics and states are kept.
      seconds: time spent up to the last save, including the time before a resume.
      failure: the first error of the store or the other observer. It stops the training as
        `should_stop` does, so that what was trained is kept, and is raised then.
    """

    def __init__(
        self,
        store: Store,
        progress: Progress,
        flag: StopFlag,
        observer: loop.Observer,
        seconds: float = 0.0,
    ):
        self.store, self.seconds = store, seconds
        self._progress, self._flag, self._observer = progress, flag, observer
        self._start = time.monotonic() - seconds
        self.failure: Exception | SystemExit | None = None
        self._last: tuple[int, float] | None = None
        self._warned = False

    def on_metrics(self, step, metrics):
        """Write a row of metrics, with the learning rate and the speed, and update the bar."""
        now = time.monotonic()
        self._warn_of_nonfinite(step, metrics)
        row = {name: value.tolist() for name, value in metrics.items()}
        row["learning_rate"] = float(metrics["learning_rate"][0])
        if self._last is not None:
            row["steps_per_second"] = (step - self._last[0]) / max(now - self._last[1], 1e-9)
        self._last = step, now
        self._keep(self.store.write, step, row)
        self._progress.update(step, **metric_names.losses(metrics))
        self._ask(self._observer.on_metrics, step, metrics)

    def _keep(self, method: Callable, *arguments: Any) -> None:
        """Let the store keep something, also after an error."""
        try:
            method(*arguments)
        except (OSError, UserError) as error:  # as of a full disk
            self.failure = self.failure or error

    def _ask(self, method: Callable, *arguments: Any) -> Any:
        """What the other observer answers; None from its first error on."""
        if self.failure is not None:
            return None
        try:
            return method(*arguments)
        except (Exception, SystemExit) as error:  # whatever the caller's code raises; Ctrl-C passes
            self.failure = error
            return None

    def _warn_of_nonfinite(self, step, metrics):
        """Warn once of scores that can't be selected; the training does not break at them."""
        count = int(np.sum(metrics.get(metric_names.NONFINITE_SCORES, 0)))
        if not count or self._warned:
            return
        self._warned = True
        logging.warning(
            "%d attributions up to step %d are NaN or infinite: these components are not switched "
            "on there. The metric %s counts such attributions; check the inputs, and whether the "
            "network's derivatives are finite on them.",
            count,
            step,
            metric_names.NONFINITE_SCORES,
        )

    def save(self, step, state):
        """Save a state together with the time spent."""
        self.seconds = time.monotonic() - self._start
        self._keep(self.store.save, step, state, self.seconds)
        self._ask(self._observer.save, step, state)

    def finish(self) -> None:
        """Wait until the store has written everything."""
        self._keep(self.store.finish)

    def should_stop(self):
        """Whether a signal or the other observer requests a stop."""
        wanted = self._ask(lambda: bool(self._observer.should_stop()))
        return self._flag.asked(bool(wanted) or self.failure is not None)
