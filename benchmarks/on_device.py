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
from apd_jax.data import SampleBatch
from apd_jax.runtime import loop
from apd_jax.sites import Target
from apd_jax.training.config import Settings
from apd_jax.training.trainer import Trainer
from benchmarks import machine, options, problem, transformer
from benchmarks.process import ROOT

_CLOSE = 1e-4  # relative difference from the paper's numbers that rounding explains
_SMALL = {"batch_size": 32}
_SMALL_NETWORKS = {"resid_mlp": {"target.d_resid": 40, "num_components": 20}}
_SMALL_MODEL = transformer.Sizes(2, 8, 16, 2, 32, 2, 40, 2)
_REDUCED = "default"  # TF32 on NVIDIA GPUs, bfloat16 on TPUs, float32 on CPUs

Problem = tuple[Settings, Target, SampleBatch, jax.Array]


def problems(small: bool) -> dict[str, Callable[[], Problem]]:
    """The four configs and the language model, `{name: function that makes the problem}`."""

    def config(name: str) -> Problem:
        changes = _SMALL | _SMALL_NETWORKS.get(name.partition(":")[0], {}) if small else {}
        plan = problem.find_plan(name, changes)
        return plan.settings, problem.train_targets(plan, 0), plan.task.inputs, plan.seeds

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


def steps(made: Problem, count: int, chunk: int) -> dict[str, Any]:
    """Time steps twice from the same start, and compare both ends bit by bit."""
    settings, targets, inputs, seeds = made
    trainer = Trainer(settings, targets, inputs, seeds)

    def run() -> tuple[Any, list[float]]:
        state, times = trainer.init_state(), []
        for done in range(chunk, count + 1, chunk):
            start = time.perf_counter()
            state = _steps(trainer, state, done, chunk)
            times.append((time.perf_counter() - start) / chunk)
        return state, times

    first, cold = run()
    second, warm = run()
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    same = all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
    return {
        "seconds_per_step": statistics.median(warm),
        "compile_seconds": max(cold[0] - warm[0], 0) * chunk,
        "peak_memory_of_process": machine.peak_memory(),
        "deterministic": same,
        "passed": same,
    }


def _steps(trainer: Trainer, state: Any, done: int, chunk: int) -> Any:
    return jax.block_until_ready(
        loop.run_steps(
            trainer.step,
            trainer.context,
            state,
            trainer.seeds,
            steps=done,
            chunk_steps=chunk,
            layout=trainer.layout,
        )
    )


def precision(made: Problem, count: int) -> dict[str, Any]:
    """Steps at reduced precision against the same steps at the highest.

    Attributions are computed at the highest precision in both, so that the first step selects the
    same components.
    """
    _, targets, inputs, seeds = made
    found = {}
    for name in ("highest", _REDUCED):
        settings = dataclasses.replace(made[0], matmul_precision=name)
        trainer = Trainer(settings, targets, inputs, seeds)
        rows: list[dict[str, np.ndarray]] = []
        observer = loop.Observer()
        observer.on_metrics = lambda step, metrics, rows=rows: rows.append(metrics)  # type: ignore
        arguments = (trainer.step, trainer.context)
        kept = {"layout": trainer.layout, "chunk_steps": 1, "observer": observer}
        state = loop.run_steps(*arguments, trainer.init_state(), seeds, steps=1, **kept)
        _steps(trainer, jax.tree.map(jnp.copy, state), 1 + count, count)
        start = time.perf_counter()
        _steps(trainer, state, 1 + count, count)
        found[name] = rows[0], (time.perf_counter() - start) / count
    (exact, slow), (reduced, fast) = found["highest"], found[_REDUCED]
    names = [name for name in exact if name.startswith("loss/")]
    return {
        "first_step": {name: _difference(reduced[name], exact[name]) for name in names},
        "faster": slow / max(fast, 1e-9),
        "passed": bool(np.array_equal(exact["active_components"], reduced["active_components"])),
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
    results: dict[str, Any] = {"machine": machine.describe(), "small": args.small}

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
        try:
            made = make()
        except Exception as error:
            part("steps", name, lambda error=error: _raise(error))
            continue
        part("steps", name, lambda made=made: steps(made, 4 * chunk, chunk))
        part("precision", name, lambda made=made: precision(made, chunk))
        part("memory", name, lambda made=made: _memory(made))
    results["passed"] = _passed(results)
    _write(args.out, results)
    print("PASS" if results["passed"] else "FAIL", args.out)
    return 0 if results["passed"] else 1


def _memory(made: Problem) -> dict[str, Any]:
    """The plan of the step: bytes by kind, and those of the compiled step."""
    from apd_jax.data import as_source
    from apd_jax.training.requirements import requirements

    settings, targets, inputs, _ = made
    found = requirements(settings, targets, as_source(inputs))
    return found.to_dict() | {"passed": found.fits is not False}


def _raise(error: Exception) -> dict[str, Any]:
    raise error


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
