"""Memory of whole calls of `decompose`, with summary, evidence and report.

    python -m benchmarks.whole_calls vocabulary  # a language model of 5000 tokens, batches of 4
    python -m benchmarks.whole_calls repeated    # 30 calls in one process, on new networks

`vocabulary` prints by how many MB the peak of the process grows: in a training of steps alone, from
random components, and in another process in a call with all defaults, its summary and its report.
`repeated` prints after every call the resident memory, the number of memory mappings and
that of JAX's live arrays. If torch is installed, every other network is a torch module.
"""

import argparse
import gc
import importlib.util
import pathlib
import resource
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import apd_jax

VOCABULARY, LENGTH, WIDTH = 5000, 64, 32
SMALL = {"num_components": 4, "rank": 1, "topk": 1.0, "steps": 5, "batch_size": 64}


def _language_model(params, tokens):
    hidden = params["embed"][tokens]
    before = jnp.arange(1, LENGTH + 1)[:, None]
    hidden = hidden + jnp.cumsum(hidden, 1) / before @ params["mix"]
    hidden = hidden + jax.nn.relu(hidden @ params["up"]) @ params["down"]
    return hidden @ params["embed"].T


def vocabulary(whole: bool) -> None:
    """Print the growth of the process's peak in one call."""
    keys = iter(jax.random.split(jax.random.key(0), 4))
    shapes = {"embed": (VOCABULARY, WIDTH), "mix": (WIDTH, WIDTH)}
    shapes |= {"up": (WIDTH, 64), "down": (64, WIDTH)}
    params = {name: jax.random.normal(next(keys), shape) / 6 for name, shape in shapes.items()}
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (256, LENGTH), dtype=np.int32)
    steps_alone = {} if whole else {"start": "random", "relative_losses": False}
    before = _peak()
    found = apd_jax.decompose(
        apd_jax.Target(_language_model, params),
        tokens,
        num_components=20,
        rank=2,
        topk=4,
        batch_size=4,
        steps=20,
        **steps_alone,
    )
    if whole:
        found.summary(tokens)
        with tempfile.TemporaryDirectory() as place:
            found.report(pathlib.Path(place) / "report.html", tokens)
    print(f"{'whole call' if whole else 'steps alone':12} {_peak() - before:6} MB", flush=True)


def repeated(count: int = 30) -> None:
    """Print what the process holds after each of several calls."""
    print("call  resident MB  mappings  live arrays")
    for number in range(count):
        _call(number)
        gc.collect()
        status = pathlib.Path("/proc/self/status").read_text().splitlines()
        resident = int(next(line for line in status if line.startswith("VmRSS")).split()[1]) // 1024
        maps = len(pathlib.Path("/proc/self/maps").read_text().splitlines())
        arrays = len(jax.live_arrays())
        print(f"{number + 1:4}  {resident:11}  {maps:8}  {arrays:11}", flush=True)


def _call(number: int) -> None:
    rows = np.random.default_rng(number).normal(size=(50_000, 10)).astype("f4")
    if number % 2 and importlib.util.find_spec("torch"):
        import torch

        layers = torch.nn.Linear(10, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)
        module = torch.nn.Sequential(*layers).eval()
        target = apd_jax.Target.from_torch(module, torch.from_numpy(rows[:8]))
    else:
        held = jnp.full(500_000, float(number))  # which the network keeps alive
        weights = {
            "in": jax.random.normal(jax.random.key(number), (10, 6)),
            "out": jnp.ones((6, 3)),
        }
        target = apd_jax.Target(
            lambda p, x: jax.nn.relu(x @ p["in"]) @ p["out"] + held[:3], weights
        )
    with tempfile.TemporaryDirectory() as place:
        found = apd_jax.decompose(
            target, rows, workdir=f"{place}/run", refine={"every": 0.5}, **SMALL
        )
        found.summary(rows[:64])
        found.evidence(rows[:64], adversary_steps=(2,), draws=1)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("vocabulary", "repeated", "steps", "whole"))
    what = parser.parse_args().what
    if what == "repeated":
        repeated()
    elif what == "vocabulary":  # peaks of processes of their own
        for part in ("steps", "whole"):
            subprocess.run([sys.executable, "-m", "benchmarks.whole_calls", part], check=True)
    else:
        vocabulary(what == "whole")


if __name__ == "__main__":
    main()
