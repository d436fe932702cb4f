"""Time and memory of the evidence of a transformer: `python -m benchmarks.evidence`.

The network is that of `benchmarks.transformer`; its components are not trained, which changes
neither. A few blocks are run and timed part by part; the time of all examples is extrapolated from
the number of runs of every part.
"""

import argparse
import collections
import json
import subprocess
import sys
import time
from typing import Any
from unittest import mock

import jax

import apd_jax
from apd_jax.components import init_components
from apd_jax.evaluation.evidence import Evidence, lines
from apd_jax.evaluation.evidence.run import Run
from benchmarks import machine, options
from benchmarks.transformer import Sizes, make_problem


def measure(sizes: Sizes, examples: int, few: int, steps: int, rounds: int) -> dict[str, Any]:
    """Return seconds of every part and of all, and the peak memory of this process.

    Args:
      sizes: sizes of the problem.
      examples: number of examples to extrapolate to.
      few: number of examples that are run.
      steps: steps of the adversary.
      rounds: how often these are run after the compilation; 0 to measure memory alone.
    """
    target, settings, sample = make_problem(sizes)
    components = init_components(
        jax.random.key(1), target, num_components=sizes.components, rank=sizes.rank
    )
    found = apd_jax.Decomposition(target, components, settings)
    x = sample(jax.random.key(2), few)
    start = time.perf_counter()
    # Two steps run the programs of twenty.
    evidence = found.evidence(x, "next_tokens", adversary_steps=(2,))
    first, memory = time.perf_counter() - start, machine.peak_memory()
    every = sample(jax.random.key(2), examples)
    whole = lines.prepared(found, every, "next_tokens", adversary_steps=(steps,))[0].cost
    assert whole is not None
    seconds = [_seconds_a_run(found, x) for _ in range(rounds)]
    best = {name: min(one[name] for one in seconds) for name in seconds[0]} if seconds else {}
    parts = {
        name: {
            "title": part.title,
            "runs": part.runs,
            "operations": part.operations,
            "seconds": best.get(name, float("nan")),
        }
        for name, part in whole.parts.items()
    }
    return {
        "first_seconds": first,
        "peak_memory": memory,
        "operations": whole.operations,
        "stated": str(whole),
        "seconds": sum(p["runs"] * p["seconds"] for p in parts.values()),
        "matrix_rate": machine.matrix_rate(),
        "parts": parts,
        "own": evidence["own"],
    }


def _seconds_a_run(found: apd_jax.Decomposition, x: jax.Array) -> dict[str, float]:
    """Seconds of one run of every part, on a machine that has compiled them."""
    spent: dict[str, float] = collections.defaultdict(float)
    runs: dict[str, float] = collections.defaultdict(float)
    last = [time.perf_counter()]
    advance = Run.advance

    def timed(run: Run, part: str, number: int = 1) -> None:
        advance(run, part, number)
        now = time.perf_counter()
        spent[part] += now - last[0]
        runs[part] += number * run.share
        last[0] = now

    with mock.patch.object(Run, "advance", timed):
        last[0] = time.perf_counter()
        evidence: Evidence = found.evidence(x, "next_tokens", adversary_steps=(2,))
    # The gradient steps and the pass after them are one program, counted at the first.
    for name, part in evidence.cost.parts.items():
        if name.endswith("ascent"):
            after = "ascended" if name == "ascent" else name.split()[0]
            weight = part.operations / (part.operations + evidence.cost.parts[after].operations / 2)
            if after == "ascended":
                spent[after] += spent[name] * (1 - weight)
                spent[name] *= weight
    return {name: spent[name] / max(runs[name], 1e-9) for name in evidence.cost.parts}


def _apart(module: str, *arguments: str) -> dict[str, Any]:
    """Run a command in a process of its own; its answer is the last line."""
    command = [sys.executable, "-m", module, *arguments]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(text.splitlines()[-1])


def main() -> None:
    """Measure the evidence, and a training step of the same problem, in separate processes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--sizes", type=json.loads, default={}, help="such as '{\"layers\": 2}'")
    parser.add_argument("--examples", type=int, default=256, help="that are extrapolated to")
    parser.add_argument("--few", type=int, default=32, help="examples that are run")
    parser.add_argument("--adversary_steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2, help="runs whose fastest parts are taken")
    parser.add_argument("--alone", action="store_true", help="without a training step")
    options.add_output_option(parser, "evidence.json")
    args = parser.parse_args()
    sizes = Sizes(**args.sizes)
    if args.alone:
        print(
            json.dumps(measure(sizes, args.examples, args.few, args.adversary_steps, args.rounds))
        )
        return
    given = ["--sizes", json.dumps(sizes._asdict())]
    step = _apart("benchmarks.transformer", "--steps=2", *given)
    names = ("examples", "few", "adversary_steps", "rounds")
    given += [f"--{name}={getattr(args, name)}" for name in names]
    found = _apart("benchmarks.evidence", "--alone", *given)
    results = {"step": step, "evidence": found}
    options.write(args, results)
    print(_table(results))


def _table(results: dict[str, Any]) -> str:
    found, step = results["evidence"], results["step"]
    text = [found["stated"], f"Matrix products: {found['matrix_rate'] / 1e9:.0f} GFLOP/s"]
    for name, part in found["parts"].items():
        rate = part["operations"] / part["seconds"] / 1e9
        all_runs = part["runs"] * part["seconds"]
        text.append(
            f"{name:18} {part['runs']:7.0f} runs of {part['operations'] / 1e9:7.1f} GFLOP, "
            f"{part['seconds']:7.2f} s ({rate:5.0f} GFLOP/s): {all_runs:7.1f} s"
        )
    ratio = found["peak_memory"] / step["peak_memory"]
    text += [
        f"All: {found['seconds']:.0f} s, extrapolated; a training step takes "
        f"{step['seconds_per_step']:.1f} s",
        f"Peak memory {found['peak_memory'] / 1e6:.0f} MB, of a training step "
        f"{step['peak_memory'] / 1e6:.0f} MB: {ratio:.2f} times",
    ]
    return "\n".join(text)


if __name__ == "__main__":
    main()
