"""The process that measures apd_jax's training step: `python -m benchmarks.worker`.

The commands of this folder start it, and it answers their requests.
"""

import dataclasses
import time
from typing import Any

import jax

from apd_jax.runtime import loop, mesh
from apd_jax.training.trainer import Trainer
from benchmarks import machine, problem, process, stages, transformer


class Session:
    """A config in a realistic state of training, whose steps are timed on request."""

    def __init__(self, request: dict[str, Any]):
        """Train targets, compile, and take the first steps.

        Args:
          request: Request with `config`, `overrides`, `target_steps`, `warm` (steps before any
            timing) and `chunk` (steps in one execution; that of the config if None).
        """
        seeds = request["overrides"].get("seeds", problem.CONFIGS[request["config"]].seeds)
        mesh.split_cpu(seeds)  # as a run does
        self._libraries = machine.peak_memory()
        setup = self._setup = problem.find_setup(request["config"], request["overrides"])
        self._chunk_steps = request["chunk"] or problem.CONFIGS[request["config"]].chunk
        self._targets = problem.train_targets(self._setup, request["target_steps"])
        self._trainer = Trainer(setup.settings, self._targets, setup.task.inputs, setup.seeds)
        needed = request["warm"] + 2 * self._chunk_steps
        if needed > self._setup.settings.steps:
            raise ValueError(
                f"the config has {self._setup.settings.steps} steps, but {request['warm']} warm "
                f"ones and two chunks of {self._chunk_steps} need {needed}; ask for fewer"
            )
        self._warm = request["warm"]
        self._restart()
        self.compile_seconds = self._chunk() - self._chunk()
        self._warm_up()

    def _restart(self) -> None:
        self._done, self._state = 0, None  # the old state goes before the new one comes
        self._state = self._trainer.init_state()
        jax.block_until_ready(self._state)

    def _warm_up(self) -> None:
        while self._done < self._warm:
            self._chunk()

    def _chunk(self) -> float:
        """Take a chunk of steps and return its seconds; restart after the config's last step."""
        if self._done + self._chunk_steps > self._setup.settings.steps:
            self._restart()
            self._warm_up()
        self._done += self._chunk_steps
        start = time.perf_counter()
        self._state = loop.run_steps(
            self._trainer, self._state, chunk_steps=self._chunk_steps, steps=self._done
        )
        jax.block_until_ready(self._state)
        return time.perf_counter() - start

    def ready(self) -> dict[str, Any]:
        """Return a description of the prepared state."""
        return {
            "config": self._setup.config.flags(),
            "chunk": self._chunk_steps,
            "compile_seconds": self.compile_seconds,
            "libraries_memory": self._libraries,
            "machine": machine.describe(),
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request names: `run` or `stages`."""
        return {"run": self._run, "stages": self._stages}[request["do"]](request)

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take steps until a request is complete; return seconds per step of every chunk."""
        chunks: list[float] = []
        times: list[float] = []
        while not process.enough(times, request):
            chunks.append(self._chunk())
            times += [chunks[-1] / self._chunk_steps] * self._chunk_steps
        return {
            "seconds_per_step": [seconds / self._chunk_steps for seconds in chunks],
            "peak_memory": machine.peak_memory(),
        }

    def _stages(self, request: dict[str, Any]) -> dict[str, Any]:
        """Time the stages of a step one by one, under other routes if the request names them."""
        objective = dataclasses.replace(
            self._setup.settings.objective,
            routes=dataclasses.replace(self._setup.settings.objective.routes, **request["routes"]),
        )
        settings = dataclasses.replace(self._setup.settings, objective=objective)
        values = {
            "target": self._targets,
            "seed": self._setup.seeds,
            "state": self._state,
            "components": self._state.components,
        }
        return stages.measure(
            stages.make_stages(settings, self._setup.task.inputs),
            values,
            shares_pass=objective.attribution_source == "target",
            seconds=request["seconds"],
            only=request["only"],
        )


def main() -> None:
    channel = process.Channel()
    # A cache of compiled programs would hide the compile time.
    jax.config.update("jax_enable_compilation_cache", False)
    request = channel.receive()
    session = transformer.Session(request) if "sizes" in request else Session(request)
    channel.send(session.ready())
    while (request := channel.receive()) is not None:
        channel.send(session.answer(request))


if __name__ == "__main__":
    main()
