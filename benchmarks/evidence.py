"""Time and memory of the evidence of a transformer: `python -m benchmarks.evidence`.

The network is that of `benchmarks.transformer`; its components are not trained, which changes
neither. A few blocks are run and timed part by part; the time of all examples is extrapolated from
the number of runs of every part. With `--whole`, all examples are run instead.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

import apd_jax
from apd_jax.components import init_components
from apd_jax.evaluation.evidence import lines
from apd_jax.evaluation.evidence.equal_rank import NAMES
from apd_jax.evaluation.evidence.run import Run
from benchmarks import machine, options
from benchmarks.transformer import Sizes, make_problem


def measure(sizes: Sizes, examples: int, few: int, steps: int, rounds: int) -> dict[str, Any]:
    """Return the time of every part and of all, and the peak memory of this process.

    Args:
      sizes: sizes of the problem.
      examples: number of examples to extrapolate to.
      few: number of examples that are run.
      steps: steps of the adversary.
      rounds: how often these are run after the compilation.
    """
    found, sample = _problem(sizes)
    x = sample(jax.random.key(2), few)
    start = time.perf_counter()
    found.evidence(x, "next_tokens", **FEW)
    first, memory = time.perf_counter() - start, machine.peak_memory()
    print(
        f"first run {first:.0f} s, peak memory {memory / 1e6:.0f} MB", file=sys.stderr, flush=True
    )
    every = sample(jax.random.key(2), examples)
    whole = lines.prepared(found, every, "next_tokens", adversary_steps=(steps,))[0].cost
    assert whole is not None
    runs = [_of_a_run(found, x) for _ in range(rounds)]
    parts = {
        name: {
            "runs": part.runs,
            "operations": part.operations,
            "seconds": min(run[name].seconds for run in runs),
            "processor_seconds": min(run[name].processor for run in runs),
        }
        for name, part in whole.parts.items()
    }
    every_run = {
        kind: sum(part["runs"] * part[kind] for part in parts.values())
        for kind in ("seconds", "processor_seconds")
    }
    return {
        "first_seconds": first,
        "peak_memory": memory,
        "stated": str(whole),
        "operations": whole.operations,
        "matrix_rate": machine.matrix_rate(),
        "parts": parts,
        **every_run,
    }


def measure_whole(sizes: Sizes, examples: int, steps: int) -> dict[str, float]:
    """Return the seconds of the evidence on all examples, compilation included, and peak memory."""
    found, sample = _problem(sizes)
    x = sample(jax.random.key(2), examples)
    start = time.perf_counter()
    found.evidence(x, "next_tokens", adversary_steps=(steps,))
    return {"seconds": time.perf_counter() - start, "peak_memory": machine.peak_memory()}


def _problem(sizes: Sizes) -> tuple[apd_jax.Decomposition, Any]:
    """Components that are not trained, and the function that draws inputs."""
    target, settings, sample = make_problem(sizes)
    components = init_components(
        jax.random.key(1), target, num_components=sizes.components, rank=sizes.rank
    )
    return apd_jax.Decomposition(target, components, settings), sample


# The same programs as with more steps and draws.
FEW = {"adversary_steps": (1,), "draws": 1}


class Time(NamedTuple):
    """Time of one run of a part."""

    seconds: float
    processor: float


def _of_a_run(found: apd_jax.Decomposition, x: jax.Array) -> dict[str, Time]:
    """Time of one run of every part, of programs that are compiled."""
    spent: dict[str, np.ndarray] = {}
    last, of_ascent = [np.zeros(2)], [False]
    advance = Run.advance

    def now() -> np.ndarray:
        return np.array([time.perf_counter(), time.process_time()])

    def timed(run: Run, part: str, number: int = 1) -> None:
        advance(run, part, number)
        # Steps of the adversary and the pass that follows them are one program: its time is that
        # of the steps, and the pass takes none.
        follows, of_ascent[0] = of_ascent[0], part.endswith("ascent")
        if follows:
            return
        # The least of all times: that of the first block holds work that is done once.
        one = (now() - last[0]) / (number * run.share)
        spent[part] = np.minimum(spent[part], one) if part in spent else one
        last[0] = now()

    with mock.patch.object(Run, "advance", timed):
        last[0] = now()
        cost = found.evidence(x, "next_tokens", **FEW).cost
    for ascent, own in {"ascent": "masks", **{f"{b} ascent": b for b in NAMES}}.items():
        spent[ascent] = spent[ascent] - spent[own]
    spent["ascended"] = spent["masks"]
    return {name: Time(*spent[name]) for name in cost.parts}


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
    parser.add_argument("--rounds", type=int, default=1, help="runs whose fastest parts are taken")
    parser.add_argument("--alone", action="store_true", help="without a training step")
    parser.add_argument("--whole", action="store_true", help="run all examples, and nothing else")
    options.add_output_option(parser, "evidence.json")
    args = parser.parse_args()
    sizes = Sizes(**args.sizes)
    if args.whole:
        print(json.dumps(measure_whole(sizes, args.examples, args.adversary_steps)))
        return
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
        rate = part["operations"] / part["processor_seconds"] / 1e9
        text.append(
            f"{name:16} {part['runs']:6.0f} runs of {part['operations'] / 1e9:6.1f} GFLOP, "
            f"{part['seconds']:6.2f} s, {part['processor_seconds']:6.2f} s of a core "
            f"({rate:4.0f} GFLOP/s): {part['runs'] * part['processor_seconds']:6.0f} s of a core"
        )
    ratio = found["peak_memory"] / step["peak_memory"]
    text += [
        f"All, extrapolated: {found['seconds']:.0f} s, of a core "
        f"{found['processor_seconds']:.0f} s",
        f"Training step: {step['seconds_per_step']:.1f} s",
        f"Peak memory: {found['peak_memory'] / 1e6:.0f} MB; training "
        f"{step['peak_memory'] / 1e6:.0f} MB; {ratio:.2f} times",
    ]
    return "\n".join(text)


if __name__ == "__main__":
    main()
