"""Learning-rate schedules of the paper and the optimiser chain.

Letters: t step counted from the end of warmup, T number of steps after warmup.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

Schedule = Literal["constant", "linear", "cosine", "exponential"]
SCHEDULES = ("constant", "linear", "cosine", "exponential")


def learning_rate_schedule(
    peak: float,
    *,
    steps: int,
    schedule: Schedule = "constant",
    warmup_fraction: float = 0.0,
    halflife: float | None = None,
) -> optax.Schedule:
    """Linear warmup from 0, then one of the paper's four shapes.

    Warmup takes `W = floor(steps · warmup_fraction)` steps with rate `peak · step / W`. After it
    the factor is 1 (`constant`), `1 − t/T` (`linear`), `cos(½π · t/(T−1))` (`cosine`: a quarter of
    a wave, where optax's decays by half a wave), or `0.5^(t/halflife)` (`exponential`).

    Args:
      peak: learning rate after warmup.
      steps: number of optimiser steps, warmup included.
      schedule: shape after warmup.
      warmup_fraction: share of the steps spent in warmup, in [0, 1).
      halflife: steps in which `exponential` falls to a half.

    Returns:
      A function from the step (int or int array) to the learning rate.

    Raises:
      ValueError: a value out of its range, an unknown shape, a missing halflife.
    """
    if not peak > 0:
        raise ValueError(f"learning rate must be positive, got {peak}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 <= warmup_fraction < 1:
        raise ValueError(f"warmup_fraction must be in [0, 1), got {warmup_fraction}")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {SCHEDULES}, got {schedule!r}")
    if schedule == "exponential" and not (halflife and halflife > 0):
        raise ValueError(f"schedule 'exponential' needs a positive halflife, got {halflife}")
    warmup = int(steps * warmup_fraction)
    remaining = steps - warmup

    def shape(t: jax.Array) -> jax.Array:
        if schedule == "linear":
            return 1 - t / remaining
        if schedule == "cosine":
            return jnp.cos(0.5 * jnp.pi * t / max(remaining - 1, 1))
        if schedule == "exponential":
            return 0.5 ** (t / halflife)
        return jnp.ones_like(t)

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        rising = step / max(warmup, 1)
        return peak * jnp.where(step < warmup, rising, shape(jnp.maximum(step - warmup, 0)))

    return rate


def adam(schedule: optax.Schedule, *, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """AdamW as in the paper's code: betas 0.9 and 0.999, epsilon 1e-8, decoupled decay."""
    return optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay)
