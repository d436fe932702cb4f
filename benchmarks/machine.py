"""Rates of this machine: `python -m benchmarks.machine` prints them as JSON."""

import json
import platform
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import process
from benchmarks.timing import repeat


def describe() -> dict[str, Any]:
    """Return a description of machine and versions."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": process.cores(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "jax": jax.__version__,
    }


def peak_memory() -> int:
    """Return the peak memory in bytes: of the accelerator if there is one, else of the process."""
    held = jax.devices()[0].memory_stats()
    return held["peak_bytes_in_use"] if held else process.peak_memory()


def matrix_rate(size: int = 2000, seconds: float = 0.5) -> float:
    """Return the best rate of a float32 product of two [size, size] matrices, in operations/s."""
    key_a, key_b = jax.random.split(jax.random.key(0))
    a = jax.random.normal(key_a, (size, size))
    b = jax.random.normal(key_b, (size, size)) / size**0.5
    with jax.default_matmul_precision("highest"):
        timed = repeat(lambda values: {"a": values["a"] @ values["b"]}, {"a": a, "b": b}, seconds)
    return 2 * size**3 / timed.best()


def memory_rate(size: int = 2**26, seconds: float = 0.5) -> float:
    """Return bytes per second of `y <- y / 2 + x` on arrays of `size` floats (2 reads, 1 write)."""
    values = {"x": jnp.ones(size), "y": jnp.ones(size)}
    timed = repeat(lambda v: {"y": 0.5 * v["y"] + v["x"]}, values, seconds)
    return 3 * 4 * size / timed.best()


def main() -> None:
    rates = {"operations_per_second": matrix_rate(), "bytes_per_second": memory_rate()}
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
