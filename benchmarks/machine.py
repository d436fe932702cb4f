"""What this machine can do: `python -m benchmarks.machine` prints its rates as JSON."""

import json
import platform
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import process
from benchmarks.timing import repeat


def describe() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": process.cores(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "jax": jax.__version__,
    }


def peak_memory() -> int:
    """The most bytes held so far: on an accelerator of its memory, else of the process."""
    held = jax.devices()[0].memory_stats()
    return held["peak_bytes_in_use"] if held else process.peak_memory()


def matrix_rate(size: int = 2000, seconds: float = 0.5) -> float:
    """Operations per second of a float32 product of two [size, size] matrices, the best seen."""
    key_a, key_b = jax.random.split(jax.random.key(0))
    a = jax.random.normal(key_a, (size, size))
    b = jax.random.normal(key_b, (size, size)) / size**0.5
    with jax.default_matmul_precision("highest"):
        timed = repeat(lambda values: {"a": values["a"] @ values["b"]}, {"a": a, "b": b}, seconds)
    return 2 * size**3 / timed.best()


def memory_rate(size: int = 2**26, seconds: float = 0.5) -> float:
    """Bytes per second of `y <- y / 2 + x` on arrays of `size` floats (two read, one written)."""
    values = {"x": jnp.ones(size), "y": jnp.ones(size)}
    timed = repeat(lambda v: {"y": 0.5 * v["y"] + v["x"]}, values, seconds)
    return 3 * 4 * size / timed.best()


def main() -> None:
    rates = {"operations_per_second": matrix_rate(), "bytes_per_second": memory_rate()}
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
