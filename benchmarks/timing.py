"""Time a computation that is repeated inside one execution."""

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
    """Times of executions with one repetition and with many.

    Attributes:
      times: Difference in the number of repetitions.
      once: Seconds of the short executions.
      many: Seconds of the long executions.
    """

    times: int
    once: list[float]
    many: list[float]

    def median(self) -> float:
        """Return the median of the seconds per repetition."""
        return max(statistics.median(self.many) - statistics.median(self.once), 0) / self.times

    def best(self) -> float:
        """Return the least seconds per repetition, without disturbance."""
        return max(min(self.many) - min(self.once), 0) / self.times

    def spread(self) -> float:
        """Return half the interquartile range of the long executions, per repetition."""
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
    """Time a stage as it runs in training: repeatedly inside one execution.

    Calling a compiled stage once would also measure the call and the first access to fresh memory,
    which a scanned step does not have. Executions of 1 and of n + 1 repetitions are compared.

    Args:
      stage: The stage; the values that it computes replace the inputs of the same name.
      values: Inputs of the stage.
      seconds: Minimum time of the n repetitions.

    Returns:
      `SAMPLES` executions of either kind, alternating.
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
