"""The run of a decomposition of one's own: in memory, or in a directory that it can go on from.

Letters: S seeds side by side.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from apd_jax import config_fields
from apd_jax.components import Components
from apd_jax.decomposition.result import Decomposition
from apd_jax.runtime import loop, metric_reader, session
from apd_jax.runtime.checkpoint import to_host
from apd_jax.runtime.checksum import fingerprint
from apd_jax.runtime.preemption import StopFlag
from apd_jax.runtime.progress import Progress
from apd_jax.runtime.workdir import Workdir, atomic_write_bytes
from apd_jax.sites import PyTree, Target
from apd_jax.training.config import Settings

EXAMPLES = 2048
Row = dict[str, Any]


class Outcome(NamedTuple):
    """Where a run ended.

    Attributes:
      state: leaves [S, ...].
      rows: the metrics at the end of every chunk, `{"step": t, name: [S]}`.
      done: number of steps done, fewer than asked for after a stop.
    """

    state: Any
    rows: list[Row]
    done: int

    def history(self, index: int) -> list[dict[str, float]]:
        """The metrics of one of the seeds."""
        return [{name: _of(value, index) for name, value in row.items()} for row in self.rows]


def _of(value: Any, index: int) -> Any:
    return value[index] if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be run; the fields are those of `session.Stage`."""

    make_state: Callable[[], Any]
    make_step: Callable[[], loop.StepFn]
    make_between: Callable[[], loop.Between | None]
    context: Any
    seeds: jax.Array
    steps: int
    chunk_steps: int
    feed: loop.Feed | None
    observer: loop.Observer


def run(work: Work, flag: StopFlag) -> Outcome:
    """Run it in memory, to its end or to a stop.

    Raises:
      loop.Diverged: something stopped being finite.
    """
    with Progress(work.steps, "decomposition") as progress:
        recorder = _Recorder(work.observer, flag, progress)
        try:
            state = loop.run_steps(
                work.make_step(),
                work.context,
                work.make_state(),
                work.seeds,
                steps=work.steps,
                chunk_steps=work.chunk_steps,
                feed=work.feed,
                between=work.make_between(),
                observer=recorder,
            )
        except loop.Stopped as stopped:
            logging.warning("Stopped at step %d of %d.", stopped.step, work.steps)
            return Outcome(stopped.state, recorder.rows, stopped.step)
    return Outcome(state, recorder.rows, work.steps)


class _Recorder(loop.Observer):
    """Keeps and shows the metrics, and passes everything on."""

    def __init__(self, observer: loop.Observer, flag: StopFlag, progress: Progress):
        self.rows: list[Row] = []
        self._observer, self._flag, self._progress = observer, flag, progress
        self.save = observer.save

    def on_metrics(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        self.rows.append({"step": step} | {n: v.tolist() for n, v in metrics.items()})
        shown = {name.removeprefix("loss/"): v for name, v in metrics.items() if "loss" in name}
        self._progress.update(step, **shown)
        self._observer.on_metrics(step, metrics)

    def should_stop(self) -> bool:
        return self._flag.requested or self._observer.should_stop()


def config_of(
    settings: Settings, target: Target, init: Components | None, **others: Any
) -> dict[str, Any]:
    """All that decides the numbers of a decomposition besides its target, as a JSON object."""
    start = None if init is None else fingerprint(to_host(init))
    plain = config_fields.plain(config_fields.to_mapping(settings))
    return plain | others | {"init": start, "sites": list(target.sites)}


@contextlib.contextmanager
def directory(path: str | os.PathLike[str], config: dict[str, Any]) -> Iterator[Workdir]:
    """Hold the directory of a decomposition.

    Raises:
      WorkdirError: it is another one's, or can't be written to.
    """
    with Workdir(path) as workdir:
        defaults = config_fields.plain(config_fields.to_mapping(Settings()))
        workdir.claim(config, free=("checkpoint_every",), defaults=defaults)
        yield workdir


def run_in(workdir: Workdir, work: Work, config: dict[str, Any], flag: StopFlag) -> Outcome:
    """Run it in its directory, or go on there; see `run`."""
    stage = session.Stage(
        name="decomposition",
        directory=workdir.path,
        save_every=config["checkpoint_every"],
        max_to_keep=3,
        config=config,
        tensorboard=False,
        **{field.name: getattr(work, field.name) for field in dataclasses.fields(work)},
    )
    done = work.steps
    try:
        state, _ = session.run(stage, flag)
    except loop.Stopped as stopped:
        state, done = stopped.state, stopped.step
        logging.warning("Stopped at step %d of %d; call again to go on.", done, work.steps)
    rows, _ = metric_reader.read(workdir.metrics, steps=work.steps, chunk_steps=work.chunk_steps)
    return Outcome(state, [row for row in rows if row["step"] <= done], done)


def publish(workdir: Workdir, decomposition: Decomposition, x: PyTree) -> None:
    """Write the components, the report and its figures of a finished decomposition."""
    from apd_jax.report import decomposition_page  # matplotlib is slow to import

    decomposition.save(workdir.path / "components")
    workdir.figures.mkdir(exist_ok=True)
    for panel in decomposition_page.write(decomposition, workdir.report, x):
        atomic_write_bytes(workdir.figures / f"{panel.name}.png", panel.png)
