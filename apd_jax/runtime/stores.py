"""Where a training is kept while it runs: in memory, in its directory, or in those of its parts.

All stores have the same methods. Letters: S seeds side by side.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp

from apd_jax.errors import UserError
from apd_jax.runtime import loop, memory, metric_reader
from apd_jax.runtime.checkpoint import Checkpointer, Restored, to_host
from apd_jax.runtime.checksum import fingerprint
from apd_jax.runtime.metric_writer import MetricWriter
from apd_jax.runtime.outcome import Row


@dataclasses.dataclass(frozen=True)
class Keeping:
    """How often a training is reported and saved, and what is written next to its checkpoints.

    Attributes:
      chunk_steps, save_every: see `loop.run_steps`.
      max_to_keep: number of newest checkpoints that are kept.
      config: a JSON object that every checkpoint holds, for whoever finds one on its own.
      tensorboard, wandb: see `MetricWriter`.
    """

    chunk_steps: int
    save_every: int
    max_to_keep: int = 3
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tensorboard: bool = False
    wandb: Mapping[str, Any] | None = None


class Memory:
    """Keeps the metrics, and a copy of the last state saved."""

    def __init__(self, steps: int):
        self._steps = steps
        self._rows: list[Row] = []
        self._last: tuple[int, Any] = (0, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def restore(self, training: loop.Training) -> Restored | None:
        """There is nothing to resume from."""

    def log(self, done: int) -> contextlib.AbstractContextManager:
        """Nothing to open."""
        return contextlib.nullcontext()

    def write(self, step: int, row: Row) -> None:
        """Keep the metrics of a chunk."""
        self._rows.append({"step": step} | row)

    def save(self, step: int, state: Any, seconds: float) -> None:
        """Keep a copy of a state that is not the last one: the loop donates its buffers."""
        self._last = (0, None)  # so that there are never two copies
        if step < self._steps:
            self._last = (step, to_host(state))

    def finish(self) -> None:
        """There is nothing to wait for."""

    def saved(self) -> tuple[int, Any]:
        """The last state saved, and its step; None without any."""
        return self._last

    def rows(self, step: int) -> list[Row]:
        """The metrics up to a step."""
        return [row for row in self._rows if row["step"] <= step]

    def last_good(self) -> str:
        """A sentence that names the last state saved."""
        if self._last[1] is None:
            return "No state had been kept."
        return f"The last good state that was kept is that of step {self._last[0]}."


class Directory:
    """Keeps checkpoints and metrics in files."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        training: loop.Training,
        name: str,
        keeping: Keeping,
    ):
        self._path, self._name, self._keeping = pathlib.Path(directory), name, keeping
        self._steps, self._between = training.steps, training.between
        self._saved: int | None = None
        context = fingerprint(to_host(training.context))
        self._metadata = {"config": keeping.config, "context": context}
        self._shapes: Any = None
        self._writer: MetricWriter | None = None

    def __enter__(self) -> Self:
        directory = self._path / "checkpoints"
        self._checkpointer = Checkpointer(directory, max_to_keep=self._keeping.max_to_keep)
        return self

    def __exit__(self, *exception: object) -> None:
        self._checkpointer.close()

    def restore(self, training: loop.Training) -> Restored | None:
        """The newest whole checkpoint.

        Raises:
          UserError: it belongs to another context: numbers of two trainings would be mixed.
        """
        # The state's shapes take as long to find as its making takes to trace.
        restored = self._checkpointer.restore_latest(lambda: loop.abstract_state(training))
        if restored is None:
            return None
        context = self._metadata["context"]
        if restored.metadata.get("context", context) != context:
            raise UserError(
                f"{self._name}: step {restored.step} in {self._path} was made with another target "
                "than the current one, which may have been retrained on another machine or "
                "version: restore its parameters (those of an experiment are in target/), choose "
                "another workdir, or delete this one."
            )
        self._saved, self._shapes = restored.step, _shapes(restored.state)
        return restored

    @contextlib.contextmanager
    def log(self, done: int) -> Iterator[None]:
        """Hold the metrics open, without rows after step `done`."""
        with MetricWriter(
            self._path,
            wandb=self._keeping.wandb,
            tensorboard=self._keeping.tensorboard,
            resume_step=None if self._saved is None else done,
        ) as self._writer:
            yield

    def write(self, step: int, row: Row) -> None:
        """Write the metrics of a chunk."""
        assert self._writer is not None
        self._writer.write(step, row)

    def save(self, step: int, state: Any, seconds: float) -> None:
        """Write a checkpoint, in another thread."""
        memory.give_back()  # what the checkpoint before this one took
        self._checkpointer.save(step, state, {"seconds": seconds, **self._metadata})
        self._saved, self._shapes = step, _shapes(state)

    def finish(self) -> None:
        """Wait until the last checkpoint is on disk."""
        self._checkpointer.wait()

    def saved(self) -> tuple[int, Any]:
        """The state of the newest checkpoint, and its step; None without any."""
        self._checkpointer.wait()
        if self._saved is None:
            return 0, None
        restored = self._checkpointer.restore_latest(self._shapes)
        return (restored.step, restored.state) if restored else (0, None)

    def rows(self, step: int) -> list[Row]:
        """The metrics up to a step, as far as they can be read."""
        rows, _ = metric_reader.read(
            self._path / "metrics.jsonl",
            steps=self._steps,
            chunk_steps=self._keeping.chunk_steps,
            every=self._between and self._between.every,
        )
        return [row for row in rows if row["step"] <= step]

    def last_good(self) -> str:
        """A sentence that names the newest checkpoint."""
        self._checkpointer.wait()
        if self._saved is None:
            return "No checkpoint had been saved."
        return f"The last good checkpoint is {self._path / 'checkpoints' / str(self._saved)}"


class Several:
    """Keeps trainings that run side by side as one, each in a directory of its own.

    Every directory holds what a single training would write there, and can be resumed by one.
    """

    def __init__(self, stores: Sequence[Directory], trainings: Sequence[loop.Training]):
        """Combine stores of trainings of the same number of seeds, all after the same step."""
        self._stores, self._trainings = stores, trainings
        self._size = len(trainings[0].seeds)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for store in self._stores:
                stack.enter_context(store)
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()

    def _parts(self) -> Iterator[tuple[Directory, slice]]:
        """Every store, and the places of its seeds among all."""
        for index, store in enumerate(self._stores):
            yield store, slice(index * self._size, (index + 1) * self._size)

    def restore(self, training: loop.Training) -> Restored | None:
        """The newest whole checkpoints of all; None without any."""
        pairs = zip(self._stores, self._trainings, strict=True)
        each = [store.restore(one) for store, one in pairs]
        found = [one for one in each if one is not None]
        if not found:
            return None
        assert len({one.step for one in found}) == 1 and len(found) == len(each), "at other steps"
        state = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(one.state for one in found))
        return found[0]._replace(state=state)

    @contextlib.contextmanager
    def log(self, done: int) -> Iterator[None]:
        """Hold the metrics of all open, without rows after step `done`."""
        with contextlib.ExitStack() as stack:
            for store in self._stores:
                stack.enter_context(store.log(done))
            yield

    def write(self, step: int, row: Row) -> None:
        """Write the metrics of a chunk: lists have a number for every seed of every training."""
        for store, rows in self._parts():
            own = {name: v[rows] if isinstance(v, list) else v for name, v in row.items()}
            store.write(step, own)

    def save(self, step: int, state: Any, seconds: float) -> None:
        """Write a checkpoint of each, in other threads."""
        host = to_host(state)
        for store, rows in self._parts():
            store.save(step, jax.tree.map(lambda leaf, rows=rows: leaf[rows], host), seconds)

    def finish(self) -> None:
        """Wait until the last checkpoints are on disk."""
        for store in self._stores:
            store.finish()

    def saved(self) -> tuple[int, Any]:
        """Nothing: each training resumes from its own directory."""
        return 0, None

    def rows(self, step: int) -> list[Row]:
        """Nothing: see the directories."""
        return []

    def last_good(self) -> str:
        """A sentence on where the checkpoints are."""
        return "Each run keeps its own checkpoints"


def _shapes(state: Any) -> Any:
    """Shapes and types of a state on one device, like everything after a training."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


Store = Memory | Directory | Several
