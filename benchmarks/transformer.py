"""Time and memory of a decomposed transformer language model: `python -m benchmarks.transformer`.

Random weights; per-position masks, KL loss, Fisher attributions sketched with one probe.
Letters: B batch, T positions, C components, L layers, d width.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from apd_jax.objective.coefficients import Coefficients, Routes
from apd_jax.objective.objective import Objective
from apd_jax.runtime import loop
from apd_jax.sites import Target
from apd_jax.training.config import Settings
from apd_jax.training.trainer import Trainer
from benchmarks import machine, options, process, tables


class Sizes(NamedTuple):
    """Sizes of a problem."""

    layers: int = 6
    positions: int = 64
    components: int = 200
    batch: int = 16
    width: int = 256
    heads: int = 8
    vocabulary: int = 1000
    rank: int = 4


def init_params(key: jax.Array, sizes: Sizes) -> dict[str, Any]:
    """Return random weights of a pre-norm decoder with learned positions."""
    d, v = sizes.width, sizes.vocabulary
    shapes = {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
    keys = iter(jax.random.split(key, 4 * sizes.layers + 3))

    def draw(shape):
        return jax.random.normal(next(keys), shape) / shape[0] ** 0.5

    return {
        "tokens": draw((v, d)) * v**0.5 * 0.1,
        "positions": draw((sizes.positions, d)) * 0.1,
        "blocks": [{name: draw(s) for name, s in shapes.items()} for _ in range(sizes.layers)],
        "unembed": draw((d, v)),
    }


def apply(params: dict[str, Any], tokens: jax.Array, *, heads: int) -> jax.Array:
    """Return logits [B, T, V] of tokens [B, T]."""
    h = params["tokens"][tokens] + params["positions"]
    batch, positions, width = h.shape
    causal = jnp.tril(jnp.ones((positions, positions), bool))
    for block in params["blocks"]:
        split = (batch, positions, 3, heads, width // heads)
        q, k, v = jnp.moveaxis((_norm(h) @ block["qkv"]).reshape(split), 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (width // heads) ** 0.5
        pattern = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", pattern, v).reshape(h.shape)
        h = h + mixed @ block["out"]
        h = h + jax.nn.gelu(_norm(h) @ block["up"]) @ block["down"]
    return _norm(h) @ params["unembed"]


def _norm(h: jax.Array) -> jax.Array:
    centred = h - h.mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-5)


def make_problem(sizes: Sizes) -> tuple[Target, Settings, Callable]:
    """Return the network, the settings of its decomposition, and `sample(key, batch_size)`."""
    shape = (sizes.batch, sizes.positions)

    def sample(key, batch_size):
        return jax.random.randint(key, (batch_size, sizes.positions), 0, sizes.vocabulary)

    def network(params, tokens):
        return apply(params, tokens, heads=sizes.heads)

    target = Target(
        network,
        init_params(jax.random.key(0), sizes),
        inputs=jax.ShapeDtypeStruct(shape, jnp.int32),
    )
    objective = Objective(
        Coefficients(minimality=1.0, simplicity=1.0),
        topk=8.0,
        per_position=True,
        minimality_loss="kl",
        metric="fisher",
        routes=Routes(attribution_mode="sketch"),
    )
    settings = Settings(
        objective=objective,
        num_components=sizes.components,
        rank=sizes.rank,
        batch_size=sizes.batch,
        steps=1000,
    )
    return target, settings, sample


class Session:
    """The training step of a problem, compiled, whose steps are timed on request."""

    def __init__(self, request: dict[str, Any]):
        """Compile, and take the first steps.

        Args:
          request: Request with `sizes` (fields of `Sizes`) and `warm` (steps before any timing,
            besides the one that compiles).
        """
        self._libraries = machine.peak_memory()
        target, settings, sample = make_problem(Sizes(**request["sizes"]))
        self.num_sites = len(target.sites)
        self._targets = loop.stack([target])
        trainer = Trainer(settings, self._targets, sample, jnp.zeros(1, jnp.uint32))
        self._state = trainer.init_state()
        self._step = jax.jit(jax.vmap(trainer.step, (0, 0, None)), donate_argnums=1)
        self._number = 0
        self.first_seconds = self._take()
        for _ in range(request["warm"]):
            self._take()

    def _take(self) -> float:
        """Take a step and return its seconds."""
        start = time.perf_counter()
        key = jax.random.key(self._number)
        self._state, metrics = jax.block_until_ready(self._step(self._targets, self._state, key))
        self._number += 1
        self.loss = float(metrics["loss/total"][0])
        return time.perf_counter() - start

    def ready(self) -> dict[str, Any]:
        """Return a description of the prepared state."""
        return {"libraries_memory": self._libraries, "machine": machine.describe()}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take steps until a request is complete; return the seconds of each."""
        times: list[float] = []
        while not process.enough(times, request):
            times.append(self._take())
        return {"seconds_per_step": times, "peak_memory": machine.peak_memory()}


def measure(sizes: Sizes, steps: int) -> dict[str, Any]:
    """Return seconds per step and peak memory of this process."""
    session = Session({"sizes": sizes._asdict(), "warm": 0})
    answer = session.answer({"steps": steps})
    seconds = statistics.median(answer["seconds_per_step"])
    return {
        "compile_seconds": session.first_seconds - seconds,
        "seconds_per_step": seconds,
        "peak_memory": answer["peak_memory"],
        "sites": session.num_sites,
        "loss": session.loss,
    }


class Sweep(NamedTuple):
    """One size that grows while all others stay: what and its letter, its field, its values."""

    title: str
    letter: str
    field: str
    values: tuple[int, ...]


SWEEPS = (
    Sweep("Components", "C", "components", (50, 100, 200, 400, 800)),
    Sweep("Positions", "T", "positions", (32, 64, 128)),
    Sweep("Layers", "L", "layers", (2, 4, 6)),
)


def _measure_apart(sizes: Sizes, steps: int, cache: str) -> dict[str, Any]:
    """Run `measure` in a separate process, with compiled programs kept in `cache`."""
    print(sizes, file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "benchmarks.transformer", f"--steps={steps}"]
    command += ["--sizes", json.dumps(sizes._asdict())]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    text = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout
    return json.loads(text.splitlines()[-1])


def measure_sweeps(steps: int, rounds: int) -> dict[str, Any]:
    """Measure every size of every sweep in each of `rounds` rounds, to spread slow minutes evenly.

    A problem in several sweeps is measured once per round. Compile time and memory are those of the
    first round; later rounds load its compiled programs.
    """
    problems = {Sizes(**{sweep.field: value}) for sweep in SWEEPS for value in sweep.values}
    measured: dict[Sizes, list[dict[str, Any]]] = {sizes: [] for sizes in sorted(problems)}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(rounds):
            for sizes, found in measured.items():
                found.append(_measure_apart(sizes, steps, cache))

    def point(sweep: Sweep, value: int) -> dict[str, Any]:
        found = measured[Sizes(**{sweep.field: value})]
        times = [turn["seconds_per_step"] for turn in found]
        return {
            "value": value,
            "seconds": statistics.median(times),
            "seconds_per_step": times,
            "peak_memory": found[0]["peak_memory"],
            "compile_seconds": found[0]["compile_seconds"],
        }

    return {
        "sweeps": [
            {
                "title": sweep.title,
                "letter": sweep.letter,
                "points": [point(sweep, value) for value in sweep.values],
            }
            for sweep in SWEEPS
        ]
    }


def main() -> None:
    """Measure one problem, or with --sweeps every size of every sweep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transformer", description=__doc__)
    parser.add_argument("--sweeps", action="store_true")
    parser.add_argument("--steps", type=int, default=5, help="steps of a process that are timed")
    parser.add_argument("--rounds", type=int, default=3, help="turns of the sweeps")
    parser.add_argument("--sizes", type=json.loads, default={}, help="such as '{\"layers\": 2}'")
    options.add_output_option(parser, "transformer.json")
    args = parser.parse_args()
    if not args.sweeps:
        print(json.dumps(measure(Sizes(**args.sizes), args.steps)))
        return
    results = measure_sweeps(args.steps, args.rounds)
    options.write(args, results)
    print(tables.scaling(results))


if __name__ == "__main__":
    main()
