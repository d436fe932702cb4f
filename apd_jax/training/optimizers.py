"""The paper's learning-rate schedules, the optimiser, and its step.

Letters: t step counted from the end of warmup, T number of steps after warmup.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.experimental import xla_metadata

from apd_jax.components import Components
from apd_jax.errors import UserError
from apd_jax.programs.compiled import kept_with
from apd_jax.randomness import root
from apd_jax.training import eigenbasis, schedules
from apd_jax.training.eigenbasis import Basis
from apd_jax.training.unit_norm import Projection, keep_unit_norm, project_gradient

Moments = Literal["float32", "bfloat16"]
_LEAST_UNIT = 1e-6  # smallest unit of a relative learning rate: a leaf of zeros can still learn


def learning_rate_schedule(
    peak: float | jax.Array,
    *,
    steps: int,
    schedule: str = "constant",
    warmup_fraction: float = 0.0,
    halflife: float | None = None,
) -> optax.Schedule:
    """Make a schedule with linear warmup from 0, then `schedules.factor` over the remaining steps.

    Warmup takes `W = floor(steps · warmup_fraction)` steps, with rate `peak · step / W`.

    Args:
      peak: learning rate after warmup.
      steps: number of optimiser steps, warmup included.
      schedule: shape after warmup.
      warmup_fraction: fraction of the steps spent in warmup, in [0, 1).
      halflife: steps in which `exponential` falls by half.

    Returns:
      A function from the step (int or int array) to the learning rate.

    Raises:
      UserError: a value out of its range, an unknown schedule, a missing halflife.
    """
    if not isinstance(peak, jax.core.Tracer) and not 0 < peak < math.inf:
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
    """Make AdamW as in the paper's code: betas 0.9 and 0.999, epsilon 1e-8, decoupled decay."""
    return optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay)


def in_bfloat16(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keep Adam's two moments in bfloat16 between steps, which halves their memory.

    A step changes the second moment by a thousandth, which is below the resolution of bfloat16:
    rounded to nearest, it would never decrease. Both moments are therefore rounded up or down at
    random, so that they are right on average.
    """

    def stored(state):
        def one(leaf):
            if not isinstance(leaf, optax.ScaleByAdamState):
                return leaf
            key = jax.random.fold_in(root(0), leaf.count)
            moments, structure = jax.tree.flatten((leaf.mu, leaf.nu))
            short = [_round_at_random(jax.random.fold_in(key, i), v) for i, v in enumerate(moments)]
            mu, nu = jax.tree.unflatten(structure, short)
            return leaf._replace(mu=mu, nu=nu)

        return jax.tree.map(one, state, is_leaf=lambda s: isinstance(s, optax.ScaleByAdamState))

    def wide(state):
        def one(leaf):
            return leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf

        return jax.tree.map(one, state)

    def update(gradient, state, components=None):
        updates, state = inner.update(gradient, wide(state), components)
        return updates, stored(state)

    return optax.GradientTransformation(lambda components: stored(inner.init(components)), update)


def _round_at_random(key: jax.Array, values: jax.Array) -> jax.Array:
    """Round float32 to one of the two nearest bfloat16 values; their mean is the value itself."""
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    # bfloat16 is the upper half of float32; a carry from the lower half rounds up.
    bits = bits + (jax.random.bits(key, values.shape, jnp.uint32) >> 16)
    upper = (bits >> 16).astype(jnp.uint16)
    return jax.lax.bitcast_convert_type(upper, jnp.bfloat16)


class InBases(NamedTuple):
    """State of an optimiser that works in the bases of the sites.

    Attributes:
      inner: its state there, with moments of the coordinates.
      bases: `{site: Basis}`.
    """

    inner: Any
    bases: dict[str, Basis]


class Optimizer(NamedTuple):
    """An optax transformation for components, with a projection of the gradient before it.

    Attributes:
      transformation: turns the gradient into updates.
      projection: how the gradient's component along unit-norm U is removed
        (`unit_norm.project_gradient`); `"auto"` is right only for losses that depend on a column
        of U and its row of V by their product alone. None where U may have any norm.
    """

    transformation: optax.GradientTransformation
    projection: Projection | None

    def init(self, components: Components, bases: dict[str, Basis] | None = None) -> Any:
        """The state before the first step.

        Args:
          components: the components to start from.
          bases: in whose coordinates the optimiser works (`eigenbasis.find`); None for those of the
            factors.
        """
        state = self.transformation.init(components)
        return state if bases is None else InBases(state, bases)

    def step(
        self, gradient: Components, state: Any, components: Components
    ) -> tuple[Components, Any, jax.Array]:
        """Take a step.

        Args:
          gradient: the loss's gradient, `{site: Factors}`.
          state: the optimiser's state.
          components: the components that the gradient was taken at.

        Returns:
          The components and the state after the step, and the norm of the gradient, after its
          projection where U is kept at unit norm.
        """
        # Not within the outlined program: XLA can fuse it with the sum of the gradients here.
        if self.projection is not None:
            gradient = project_gradient(gradient, components, self.projection)
        norm = optax.tree.norm(gradient)
        with _outlined():
            components, state = kept_with(self.transformation.update, _descent)(
                gradient, state, components
            )
        return components, state, norm


def decomposition_optimizer(
    schedule: optax.Schedule,
    *,
    relative: bool = False,
    unit_norm: bool = False,
    projection: Projection = "auto",
    moments: Moments = "float32",
) -> Optimizer:
    """Make the optimiser of the components: Adam, with options.

    Args:
      schedule: the learning rate.
      relative: multiply it by the root mean square of each leaf (U or V of a site). Adam's steps
        have the size of the learning rate whatever the gradient; this makes them relative to the
        weights.
      unit_norm: see `keep_unit_norm`.
      projection: see `Optimizer`.
      moments: type in which Adam's moments are kept, see `in_bfloat16`.
    """
    in_units = optax.scale_by_param_block_rms(_LEAST_UNIT) if relative else optax.identity()
    short = moments == "bfloat16"
    updates = optax.chain(in_bfloat16(adam(schedule)) if short else adam(schedule), in_units)
    return Optimizer(keep_unit_norm(updates), projection) if unit_norm else Optimizer(updates, None)


def _outlined() -> contextlib.AbstractContextManager:
    """Keep XLA from inlining the jitted functions called within, on CPU.

    If the optimiser is inlined, XLA fuses it with the sum of the gradient's summands, and forms
    that sum again for each of Adam's moments: passes over memory that take longer than Adam itself.
    """
    if jax.default_backend() != "cpu":
        return contextlib.nullcontext()
    return xla_metadata.set_xla_metadata(inlineable="false")


def _descent(update: Callable[..., Any]) -> Callable[..., Any]:
    """The compiled step of a transformation, given its update function."""

    @jax.jit
    def descend(gradient, state, components):
        if isinstance(state, InBases):
            bases, at = state.bases, eigenbasis.rotated(components, state.bases)
            updates, inner = update(eigenbasis.rotated(gradient, bases), state.inner, at)
            updates, state = eigenbasis.rotated_back(updates, bases), InBases(inner, bases)
        else:
            updates, state = update(gradient, state, components)
        return optax.apply_updates(components, updates), state

    return descend
