"""Time and memory of decomposing a transformer language model: `python -m benchmarks.transformer`.

Random weights; per-position masks, KL loss, Fisher attributions sketched with one probe.
Letters: B batch, T positions, C components, L layers, d width.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from apd_jax import loop
from apd_jax.objective import Coefficients, Objective, Routes
from apd_jax.settings import Settings
from apd_jax.sites import Target
from apd_jax.training import init_states, make_step

RESULTS = pathlib.Path(__file__).parent / "results" / "transformer.json"


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
    """Random weights of a pre-norm decoder with learned positions."""
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
    """Logits [B, T, V] of tokens [B, T]."""
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


def measure(sizes: Sizes, steps: int) -> dict[str, Any]:
    """Seconds per step and the most memory held, of this process."""
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
    seeds = jnp.zeros(1, jnp.uint32)
    targets = loop.stack([target])
    state = init_states(settings, targets, seeds)
    step = jax.jit(
        jax.vmap(lambda t, s, key: make_step(settings, sample)(t, s, key), (0, 0, None)),
        donate_argnums=1,
    )
    times = []
    for number in range(steps + 1):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(step(targets, state, jax.random.key(number)))
        times.append(time.perf_counter() - start)
    return {
        **sizes._asdict(),
        "compile_seconds": times[0],
        "seconds_per_step": statistics.median(times[1:]),
        "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "sites": len(target.sites),
        "loss": float(metrics["loss/total"][0]),
    }


SWEEPS = {
    "components": (100, 200, 400),
    "positions": (32, 64, 128),
    "layers": (2, 4, 6),
}


def main() -> None:
    """Measure one problem, or with --sweeps every size of every sweep in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--sizes", type=json.loads, default={}, help="such as '{\"layers\": 2}'")
    args = parser.parse_args()
    if not args.sweeps:
        print(json.dumps(measure(Sizes(**args.sizes), args.steps)))
        return
    found: dict[str, list[dict[str, Any]]] = {}
    for name, values in SWEEPS.items():
        for value in values:
            sizes = json.dumps({name: value})
            command = [sys.executable, "-m", "benchmarks.transformer", "--sizes", sizes]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.setdefault(name, []).append(json.loads(text.splitlines()[-1]))
            print(name, value, found[name][-1], flush=True)
            RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
