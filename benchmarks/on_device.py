"""One prepared check of a device: `python -m benchmarks.on_device`, or `on_device.sh`.

Exactness against the paper's own numbers, determinism, reduced precision against the highest, and
time and memory of steps. The file is written after every part: a limit of time loses none.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import apd_jax
from apd_jax.data import SampleBatch, as_source
from apd_jax.runtime import loop
from apd_jax.sites import Target
from apd_jax.training.config import Settings
from apd_jax.training.requirements import requirements
from apd_jax.training.trainer import Trainer
from benchmarks import machine, options, problem, transformer
from benchmarks.process import ROOT

_CLOSE = 1e-4  # relative difference from the paper's numbers that rounding explains
_NEAR = 0.1  # relative difference of losses between precisions; selections and steps may differ
_SMALL = {"batch_size": 32, "seeds": 1}
_SMALL_NETWORKS = {"resid_mlp": {"target.d_resid": 40, "num_components": 20}}
_SMALL_MODEL = transformer.Sizes(2, 8, 16, 2, 32, 2, 40, 2)
_REDUCED = "default"  # TF32 on NVIDIA GPUs, bfloat16 on TPUs, float32 on CPUs

Problem = tuple[Settings, Target, SampleBatch, jax.Array]


def problems(small: bool) -> dict[str, Callable[[], Problem]]:
    """The four configs and the language model, `{name: function that makes the problem}`."""

    def config(name: str) -> Problem:
        changes = _SMALL | _SMALL_NETWORKS.get(name.partition(":")[0], {}) if small else {}
        setup = problem.find_setup(name, changes)
        return setup.settings, problem.train_targets(setup, 0), setup.task.inputs, setup.seeds

    def model() -> Problem:
        sizes = _SMALL_MODEL if small else transformer.Sizes()
        target, settings, sample = transformer.make_problem(sizes)
        return settings, loop.stack([target]), sample, jnp.zeros(1, jnp.uint32)

    named = {name: lambda name=name: config(name) for name in problem.CONFIGS}
    return named | {"language_model": model}


def golden() -> dict[str, Any]:
    """Compare masks, attributions and outputs with the paper's own code, on its golden cases."""
    sys.path.insert(0, str(ROOT / "tests"))
    import golden as cases  # only a checkout has the tests

    found = {}
    for name in cases.CASES:
        case = cases.load(name)
        given = (case.target, case.components, case.x)
        with jax.default_matmul_precision("highest"):
            scores = apd_jax.gradient_attributions(*given)
            outputs = apd_jax.masked_apply(*given, case.data["mask/batch"])
        mask = apd_jax.batch_topk_mask(scores, float(case.data["k/batch"]))
        width = case.data["target_out"].shape[1]
        errors = {
            "attributions": (width * scores**2, case.data["attributions/gradient_target"]),
            "outputs": (outputs, case.data["masked_out/batch"]),
        }
        found[name] = {key: _difference(*pair) for key, pair in errors.items()}
        found[name]["same_mask"] = bool((mask == case.data["mask/batch"]).all())
        found[name]["passed"] = found[name]["same_mask"] and all(
            found[name][key] < _CLOSE for key in errors
        )
    return found


def _difference(ours: Any, theirs: Any) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


class _Last(loop.Observer):
    """Keeps the metrics of the first chunk."""

    found: dict[str, np.ndarray] | None = None

    def on_metrics(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """Keep them."""
        self.found = self.found or metrics


class Steps:
    """The steps of a problem at one precision of matrix products.

    Attributes:
      times: Seconds per step of every chunk, the first one with compilation.
      metrics: Metrics after the first chunk.
    """

    def __init__(self, made: Problem, chunk: int, precision: str):
        """Make the training and its first state."""
        settings, targets, inputs, seeds = made
        settings = dataclasses.replace(settings, matmul_precision=precision)
        self._trainer, self._chunk = Trainer(settings, targets, inputs, seeds), chunk
        self._first = self._trainer.init_state()

    def run(self, chunks: int) -> Any:
        """Run chunks of steps from the first state, and return the last one."""
        state, observer, self.times = jax.tree.map(jnp.copy, self._first), _Last(), []
        for number in range(1, chunks + 1):
            start = time.perf_counter()
            state = loop.run_steps(
                self._trainer,
                state,
                chunk_steps=self._chunk,
                steps=number * self._chunk,
                observer=observer,
            )
            jax.block_until_ready(state)
            self.times.append((time.perf_counter() - start) / self._chunk)
        self.metrics = observer.found or {}
        return state


def steps(exact: Steps, chunks: int) -> dict[str, Any]:
    """Time steps, twice from the same start, and compare both ends bit by bit."""
    first = exact.run(chunks)
    cold = exact.times[0]
    second = exact.run(chunks)
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    same = all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
    return {
        "seconds_per_step": statistics.median(exact.times),
        "first_chunk_seconds_per_step": cold,
        "peak_memory_of_process": machine.peak_memory(),
        "deterministic": same,
        "passed": same,
    }


def precision(exact: Steps, reduced: Steps, chunks: int) -> dict[str, Any]:
    """Compare steps at reduced precision with the same steps at the highest.

    Attributions are computed at the highest precision in both.
    """
    reduced.run(chunks)
    names = [name for name in exact.metrics if name.startswith("loss/")]
    losses = {name: _difference(reduced.metrics[name], exact.metrics[name]) for name in names}
    return {
        "difference_after_first_chunk": losses,
        "faster": statistics.median(exact.times[1:]) / statistics.median(reduced.times[1:]),
        "passed": losses["loss/total"] < _NEAR,
    }


def main() -> int:
    """Make all checks for which there is time, and write one JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_device", description=__doc__)
    parser.add_argument("--small", action="store_true", help="small networks, for CPUs")
    parser.add_argument("--steps", type=int, default=40, help="steps of each problem")
    parser.add_argument(
        "--limit", type=float, default=420, help="seconds after which no part begins"
    )
    options.add_output_option(parser, "on_device.json")
    args = parser.parse_args()
    begun = time.monotonic()
    results: dict[str, Any] = {"passed": False, "machine": machine.describe(), "small": args.small}

    def part(kind: str, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        if time.monotonic() - begun > args.limit:
            found: dict[str, Any] = {"skipped": "no time was left", "passed": False}
        else:
            try:
                found = measure()
            except Exception as error:  # the other parts are still worth their time
                found = {"error": f"{type(error).__name__}: {error}", "passed": False}
        results.setdefault(kind, {})[name] = found
        results["seconds"] = time.monotonic() - begun
        _write(args.out, results)
        print(kind, name, json.dumps(found), flush=True)

    part("exactness", "golden", golden)
    chunk = max(args.steps // 4, 1)
    for name, make in problems(args.small).items():
        if time.monotonic() - begun > args.limit:
            part("steps", name, dict)  # says that it is skipped
            continue
        made = make()
        exact, reduced = (Steps(made, chunk, each) for each in ("highest", _REDUCED))
        part("steps", name, lambda exact=exact: steps(exact, 4))
        part("precision", name, lambda pair=(exact, reduced): precision(*pair, 4))
        part("memory", name, lambda made=made: _memory(made))
    results["passed"] = all(map(_passed, list(results.values())[1:]))
    _write(args.out, results)
    print("PASS" if results["passed"] else "FAIL", args.out)
    return 0 if results["passed"] else 1


def _memory(made: Problem) -> dict[str, Any]:
    """The plan of the step: bytes by kind, and those of the compiled step."""
    settings, targets, inputs, _ = made
    found = requirements(settings, targets, as_source(inputs))
    return found.to_dict() | {"passed": found.fits is not False}


def _passed(results: Any) -> bool:
    """Whether every part passed that says whether it did."""
    if not isinstance(results, dict):
        return True
    return results.get("passed", True) and all(_passed(value) for value in results.values())


def _write(path: pathlib.Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(results, indent=1) + "\n")
    aside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
