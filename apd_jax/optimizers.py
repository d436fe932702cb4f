"""Learning-rate schedules of the paper, the optimiser chain, and a step of it.

Letters: t step counted from the end of warmup, T number of steps after warmup.
"""

import contextlib
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.experimental import xla_metadata

from apd_jax import schedules
from apd_jax.components import Components, Projection, normalise_reads, project_gradient
from apd_jax.errors import UserError

_LEAST_UNIT = 1e-6  # of a relative learning rate: a leaf of zeros can still learn


def learning_rate_schedule(
    peak: float,
    *,
    steps: int,
    schedule: str = "constant",
    warmup_fraction: float = 0.0,
    halflife: float | None = None,
) -> optax.Schedule:
    """Linear warmup from 0, then a schedule of the steps that are left (`schedules.factor`).

    Warmup takes `W = floor(steps · warmup_fraction)` steps with rate `peak · step / W`.

    Args:
      peak: learning rate after warmup.
      steps: number of optimiser steps, warmup included.
      schedule: shape after warmup.
      warmup_fraction: share of the steps spent in warmup, in [0, 1).
      halflife: steps in which `exponential` falls to a half.

    Returns:
      A function from the step (int or int array) to the learning rate.

    Raises:
      UserError: a value out of its range, an unknown shape, a missing halflife.
    """
    if not 0 < peak < math.inf:
        raise UserError(f"learning_rate must be positive and finite, got {peak}")
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    if not 0 <= warmup_fraction < 1:
        raise UserError(f"warmup_fraction must be in [0, 1), got {warmup_fraction}")
    warmup = int(steps * warmup_fraction)
    shape = schedules.factor(schedule, steps - warmup, halflife)

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        rising = step / max(warmup, 1)
        return peak * jnp.where(step < warmup, rising, shape(jnp.maximum(step - warmup, 0)))

    return rate


def adam(schedule: optax.Schedule, *, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """AdamW as in the paper's code: betas 0.9 and 0.999, epsilon 1e-8, decoupled decay."""
    return optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay)


class RecordedNorm(NamedTuple):
    """State of `record_norm`: the norm of the last gradient that came by, over all its leaves."""

    gradient_norm: jax.Array


def record_norm() -> optax.GradientTransformation:
    """Pass gradients on as they are, and keep the norm of the last one."""

    def update(gradient, state, params=None):
        del state, params
        # Apart from Adam, or its squares would be written to memory to be shared with the norm.
        apart = jax.lax.optimization_barrier(gradient)
        return gradient, RecordedNorm(optax.tree.norm(apart))

    return optax.GradientTransformation(lambda params: RecordedNorm(jnp.float32(0)), update)


def keep_unit_norm(
    inner: optax.GradientTransformation, projection: Projection = "auto"
) -> optax.GradientTransformation:
    """Keep the columns of U at unit norm, where they are from the start (the paper's option).

    The gradient loses its part along U before `inner` sees it, and the updates that come back are
    changed to end on the sphere, at `(U + update) / ‖U + update‖`.

    Args:
      inner: makes updates from the projected gradient.
      projection: see `components.project_gradient`; `"auto"` holds only for losses that know a
        column of U and its row of V by their product alone.
    """

    def update(gradient, state, components=None):
        gradient = project_gradient(gradient, components, projection)
        updates, state = inner.update(gradient, state, components)
        arrived = normalise_reads(optax.apply_updates(components, updates))
        on_sphere = {
            site: update._replace(reads=arrived[site].reads - components[site].reads)
            for site, update in updates.items()
        }
        return on_sphere, state

    return optax.GradientTransformation(inner.init, update)


def decomposition_optimizer(
    schedule: optax.Schedule,
    *,
    relative: bool = False,
    unit_norm: bool = False,
    projection: Projection = "auto",
) -> optax.GradientTransformation:
    """Adam for components, as `train_step.train_step` takes it.

    Args:
      schedule: the learning rate.
      relative: multiply it by the root mean square of each leaf, U or V of a site: Adam's steps,
        which have the size of the rate whatever the gradient, then have that of the weights.
      unit_norm, projection: see `keep_unit_norm`.
    """
    in_units = optax.scale_by_param_block_rms(_LEAST_UNIT) if relative else optax.identity()
    adam_and_norm = optax.chain(record_norm(), adam(schedule), in_units)
    return keep_unit_norm(adam_and_norm, projection) if unit_norm else adam_and_norm


def _outlined() -> contextlib.AbstractContextManager:
    """Keep the jitted functions called within as programs of their own, on CPU.

    Merged into the step, the optimiser would form the gradient anew, from all of its summands, for
    each of its averages: passes over memory that take longer than everything it computes.
    """
    if jax.default_backend() != "cpu":
        return contextlib.nullcontext()
    return xla_metadata.set_xla_metadata(inlineable="false")


@functools.partial(jax.jit, static_argnums=0)
def _descend(optimizer, gradient, optimizer_state, components):
    updates, optimizer_state = optimizer.update(gradient, optimizer_state, components)
    return optax.apply_updates(components, updates), optimizer_state


def apply_gradient(
    optimizer: optax.GradientTransformation,
    gradient: Components,
    components: Components,
    optimizer_state: Any,
) -> tuple[Components, Any, jax.Array]:
    """Take a step of the optimiser.

    Args:
      optimizer: a `decomposition_optimizer`.
      gradient: of the loss, `{site: Factors}`.
      components: where it was taken.
      optimizer_state: of the optimiser.

    Returns:
      The components and the optimiser's state after the step, and the norm of the gradient that
      Adam saw: where U is kept at unit norm, of its part along the sphere.
    """
    with _outlined():
        components, optimizer_state = _descend(optimizer, gradient, optimizer_state, components)
    return components, optimizer_state, optax.tree.get(optimizer_state, "gradient_norm")
