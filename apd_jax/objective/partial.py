"""Partial masks: inactive components with weights r in [0, 1], random or adversarial.

An explanation holds if the inactive components don't matter, neither absent nor present in part.
The remainder `Δ = θ* − Σ_c P_c`, which the components miss of the weights, can be treated as one
more inactive component, so that nothing hides in it.
Letters: B batch, T positions, C components, s_c(x) mask, D columns (C, or C + 1 with Δ).
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from apd_jax.config_fields import check_at_least, check_values, setting
from apd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PartialMasks:
    """Which partial masks the `partial` loss is evaluated with."""

    partial_masks: Literal["uniform", "halves"] = setting(
        "uniform",
        "Weights of inactive components in the partial loss: uniform in [0, 1], or halves (0 or 1 "
        "with equal probability).",
    )
    remainder: bool = setting(
        False,
        "The partial loss also scales the remainder, which the components miss of the weights, by "
        "a weight of its own in [0, 1], as if it were one more inactive component.",
    )
    adversary_share: float = setting(
        0.0,
        "Share of the examples on which an adversary raises the partial loss by changing these "
        "weights; it starts from the random ones.",
    )
    adversary_steps: int = setting(2, "Signed gradient steps of this adversary.")
    adversary_step_size: float = setting(
        0.5, "Size of these steps; weights stay in [0, 1].", traced=True
    )

    def __post_init__(self):
        check_values(self)
        check_at_least(self, 1, "adversary_steps")
        if not 0 <= self.adversary_share <= 1:
            raise UserError(f"adversary_share must be in [0, 1], got {self.adversary_share}")
        if not 0 < self.adversary_step_size <= 1:
            raise UserError(
                f"adversary_step_size must be in (0, 1], got {self.adversary_step_size}"
            )

    def num_attacked(self, batch_size: int) -> int:
        """Number of examples of a batch whose r the adversary changes."""
        if not self.adversary_share:
            return 0
        return max(1, round(self.adversary_share * batch_size))


def draw(masks: PartialMasks, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw random r, float32 [..., D], one for every row and component.

    Args:
      masks: their distribution, and whether the remainder Δ has an r, the last one.
      key: PRNG key.
      shape: [..., C], shape of the mask.
    """
    shape = (*shape[:-1], shape[-1] + masks.remainder)
    if masks.partial_masks == "halves":
        return jax.random.bernoulli(key, 0.5, shape).astype(jnp.float32)
    return jax.random.uniform(key, shape)


def scaled(mask: jax.Array, r: jax.Array) -> jax.Array:
    """`s + (1 − s) r`: active components whole, the others scaled by r.

    Args:
      mask: [B, (T), C] bool.
      r: random numbers of the same shape.
    """
    s = mask.astype(jnp.float32)
    return s + (1 - s) * r


def attack(
    masks: PartialMasks, distance: Callable[[jax.Array], jax.Array], r: jax.Array
) -> jax.Array:
    """Change r so that a distance grows: `r <- clip(r + step size · sign(∂d/∂r), 0, 1)`.

    Args:
      masks: the numbers of steps and their size.
      distance: function from r to the distance d, a scalar that sums or averages over rows.
      r: where to start.

    Returns:
      r after the last step, without gradient.
    """

    def step(_, r):
        # Signs instead of the gradient: the r of each row move by the same amount however little
        # its row adds to the mean, which is what a separate ascent for every row would do.
        moved = r + masks.adversary_step_size * jnp.sign(jax.grad(distance)(r))
        return jnp.clip(moved, 0.0, 1.0)

    return jax.lax.stop_gradient(jax.lax.fori_loop(0, masks.adversary_steps, step, r))
