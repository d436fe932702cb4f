"""CPU time of calls on small networks, by the level at which their programs are compiled.

python -m benchmarks.quick_compilation      # every level, each in its own process
python -m benchmarks.quick_compilation 2    # one of them

Level 3 is XLA's default; the others use the older of its two ways to emit kernels
(`apd_jax.programs.quick`).
"""

import os
import subprocess
import sys
import time

import flax.linen as nn
import jax

import apd_jax
from apd_jax.programs import quick

LEVELS = (3, 2, 0)


class Convolutions(nn.Module):
    """Ten outputs of images [B, H, W, 3]."""

    @nn.compact
    def __call__(self, x):
        """Two convolutions, a mean over pixels, a product."""
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.mean(axis=(1, 2)))


class Attention(nn.Module):
    """Two outputs at every position of [B, T, d]."""

    @nn.compact
    def __call__(self, x):
        """A layer of attention and one of a perceptron."""
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(x)
        return nn.Dense(2)(nn.gelu(nn.Dense(32)(x)))


def _perceptron(width: int, outputs: int) -> nn.Module:
    return nn.Sequential([nn.Dense(width), nn.relu, nn.Dense(outputs)])


NETWORKS = {
    "the README's network": (_perceptron(16, 4), (1000, 10)),
    "a wider one, 8000 examples": (_perceptron(128, 8), (8000, 16)),
    "attention": (Attention(), (256, 16, 16)),
    "convolutions": (Convolutions(), (64, 8, 8, 3)),
}


def measure(level: int) -> None:
    """Print a row of each network: CPU seconds of `decompose`, `summary` and `evidence`."""
    for options in (quick._SOME, quick._NONE):
        options[quick._LEVEL] = level
        if level == LEVELS[0]:
            options.clear()
    for name, (module, shape) in NETWORKS.items():
        x = jax.random.normal(jax.random.key(0), shape)
        target = apd_jax.Target.from_flax(module, module.init(jax.random.key(1), x[:2]))
        times = [time.process_time()]
        found = apd_jax.decompose(
            target, x, num_components=20, topk=2.5, rank=1, steps=500, batch_size=64
        )
        times.append(time.process_time())
        found.summary(x)
        times.append(time.process_time())
        found.evidence(x)
        times.append(time.process_time())
        taken = [f"{after - before:.1f} s" for before, after in zip(times, times[1:], strict=False)]
        print("| " + " | ".join([str(level), name, *taken]) + " |", flush=True)


def main(levels: list[str]) -> None:
    """Measure one level here, or all in processes of their own."""
    if levels:
        measure(int(levels[0]))
        return
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-m", "benchmarks.quick_compilation"]
    for level in LEVELS:
        subprocess.run([*command, str(level)], env=environment, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
