"""Time of a computation that is repeated inside one execution."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Values = dict[str, Any]
Stage = Callable[[Values], Values]
SAMPLES = 5


class Timing(NamedTuple):
    """Executions of one repetition and of many.

    Attributes:
      times: by how many repetitions they differ.
      once: seconds of the short ones.
      many: seconds of the long ones.
    """

    times: int
    once: list[float]
    many: list[float]

    def median(self) -> float:
        """Seconds per repetition."""
        return max(statistics.median(self.many) - statistics.median(self.once), 0) / self.times

    def best(self) -> float:
        """Seconds per repetition when nothing disturbs."""
        return max(min(self.many) - min(self.once), 0) / self.times

    def spread(self) -> float:
        """Half the distance of the quartiles of the long executions, per repetition."""
        low, _, high = statistics.quantiles(self.many, n=4)
        return (high - low) / 2 / self.times


def _repeated(stage: Stage) -> Callable[[int, Values], Values]:
    @jax.jit
    def repeated(times, inputs):
        shapes = jax.eval_shape(stage, inputs)
        room = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def again(_, carry):
            # Nothing that a repetition computes may be reused by the next one.
            carry = jax.lax.optimization_barrier(carry)
            return {**carry, **stage(carry)}

        last = jax.lax.fori_loop(0, times, again, {**room, **inputs})
        return {name: last[name] for name in shapes}

    return repeated


def repeat(stage: Stage, values: Values, seconds: float) -> Timing:
    """Time a stage as it runs in training: over and over inside one execution.

    Calling a compiled stage once would also measure the call and the first touch of fresh memory,
    which a scanned step does not pay. So executions of 1 and of n + 1 repetitions are compared.

    Args:
      stage: the stage; what it computes takes the place of the values of that name.
      values: what it reads.
      seconds: how long the n repetitions take at least.

    Returns:
      `SAMPLES` executions of either kind, in turns.
    """

    repeated = _repeated(stage)

    def timed(times: int) -> float:
        start = time.perf_counter()
        jax.block_until_ready(repeated(times, values))
        return time.perf_counter() - start

    timed(1)
    first = timed(1)
    times = 1
    while timed(times + 1) - first < seconds and times < 10_000:
        times *= 2
    samples = [(timed(1), timed(times + 1)) for _ in range(SAMPLES)]
    once, many = zip(*samples, strict=True)
    return Timing(times, list(once), list(many))
