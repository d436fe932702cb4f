"""Cost of logging and saving: `python -m benchmarks.logging_cost --config=tms:5-2`.

The same steps are run bare, with every installed logger, and with checkpoints as configured. The
variants alternate, so that a slower machine affects all of them. The output has medians over the
rounds of the time per step and of the processor time of all threads, and the increase over the bare
loop. On a machine with other load, only the processor time is meaningful.
"""

import argparse
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import util
from typing import NamedTuple
from unittest import mock

from apd_jax.runtime import compilation_cache, loop
from apd_jax.runtime.checkpoint import Checkpointer
from apd_jax.runtime.metric_writer import MetricWriter
from apd_jax.runtime.preemption import StopFlag
from apd_jax.runtime.progress import Progress
from apd_jax.runtime.session import Recorder
from apd_jax.runtime.stores import Memory
from apd_jax.training.trainer import Trainer
from benchmarks import problem


class Times(NamedTuple):
    """Elapsed seconds, and processor seconds of all cores together."""

    wall: float
    processor: float


class Timed(NamedTuple):
    """A training, and how it is measured.

    Attributes:
      trainer: the training.
      steps: number of its steps.
      chunk_steps, save_every: see `loop.run_steps`.
    """

    trainer: Trainer
    steps: int
    chunk_steps: int
    save_every: int


class _Saving(loop.Observer):
    """An observer that only saves; it waits for the last save, which overlaps with no step."""

    def __init__(self, checkpointer: Checkpointer, steps: int):
        self._checkpointer, self._steps = checkpointer, steps

    def save(self, step, state):
        self._checkpointer.save(step, state, {"seconds": 0.0})
        if step == self._steps:
            self._checkpointer.wait()


def _logging(steps: int, run: Callable[[loop.Observer], Times]) -> Times:
    """Times with metrics.jsonl, TensorBoard, wandb (offline, if installed), progress."""
    wandb = {"project": "benchmark", "mode": "offline"} if util.find_spec("wandb") else None
    with (
        tempfile.TemporaryDirectory() as folder,
        MetricWriter(folder, wandb=wandb) as writer,
        Progress(steps, "benchmark") as progress,
    ):
        store = mock.Mock(Memory, write=writer.write)
        return run(Recorder(store, progress, StopFlag(), loop.Observer()))


def _saving(steps: int, run: Callable[[loop.Observer], Times]) -> Times:
    """Times with checkpoints."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Checkpointer(pathlib.Path(folder) / "checkpoints", max_to_keep=3) as checkpointer,
    ):
        return run(_Saving(checkpointer, steps))


def make_timed(name: str, saves: int) -> Timed:
    """The decomposition of a config, with one seed and as many steps as `saves` saves take."""
    setup = problem.find_setup(name, {"seeds": 1})
    targets = problem.train_targets(setup, 0)
    every = setup.config.checkpoint_every
    trainer = Trainer(setup.settings, targets, setup.task.inputs, setup.seeds)
    return Timed(trainer, saves * every, setup.config.chunk_steps, every)


def measure(timed: Timed, rounds: int) -> dict[str, list[Times]]:
    """Times for a step of every variant, an entry a round."""
    trainer, steps = timed.trainer, timed.steps

    def run(observer: loop.Observer) -> Times:
        state = trainer.init_state()
        state.step.block_until_ready()
        start, used = time.perf_counter(), time.process_time()
        state = loop.run_steps(
            trainer,
            state,
            chunk_steps=timed.chunk_steps,
            steps=steps,
            save_every=timed.save_every,
            observer=observer,
        )
        state.step.block_until_ready()
        wall, processor = time.perf_counter() - start, time.process_time() - used
        return Times(wall / steps, processor / steps)

    variants = {
        "bare": lambda: run(loop.Observer()),
        "every logger": lambda: _logging(steps, run),
        "checkpoints": lambda: _saving(steps, run),
    }
    run(loop.Observer())  # compiles
    times: dict[str, list[Times]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            times[name].append(variant())
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="tms:5-2", choices=sorted(problem.CONFIGS))
    parser.add_argument("--saves", type=int, default=3, help="saves in a round")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    compilation_cache.enable()
    timed = make_timed(args.config, args.saves)
    times = measure(timed, args.rounds)
    print(f"{args.config}, {timed.steps} steps a round, {args.rounds} rounds")
    medians = {
        name: Times(*map(statistics.median, zip(*rounds, strict=True)))
        for name, rounds in times.items()
    }
    for name, median in medians.items():
        shares = [
            f"{1e3 * value:.3f} ms ({value / base - 1:+.1%})"
            for value, base in zip(median, medians["bare"], strict=True)
        ]
        print(f"{name:>12}: {shares[0]} on the clock, {shares[1]} of processor time")


if __name__ == "__main__":
    main()
