"""Distances of outputs from the target's.

Letters: B batch, T positions.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from apd_jax import validity
from apd_jax.config_fields import check_takes
from apd_jax.errors import UserError
from apd_jax.objective import losses
from apd_jax.sites import PyTree

DISTANCES = {"mse": losses.output_mse, "kl": losses.output_kl}
# The sum over what counts, and the number by which the mean divides it.
_PARTS = {"mse": losses.mse_parts, "kl": losses.kl_parts}


def check_distance(loss: Any) -> None:
    """Raise UserError unless `minimality_loss` is known, or a function of two outputs."""
    if callable(loss):
        check_takes("minimality_loss", loss, "outputs", "target_outputs")
    elif loss not in DISTANCES:
        raise UserError(
            f"minimality_loss must be one of {sorted(DISTANCES)} or a function, got {loss!r}"
        )


def distance(
    loss: str | Callable, outputs: PyTree, target_outputs: PyTree, valid: validity.Valid = None
) -> jax.Array:
    """Mean distance of outputs from the target's, over the examples or positions that count.

    Args:
      loss: name in `DISTANCES`, or a function `(outputs, target_outputs)`.
      outputs, target_outputs: [B, ...].
      valid: bool [B] or [B, T]; None for all.

    Raises:
      UserError: with `valid`, a function that gives no value for each example or position.
    """
    if valid is None:
        if not callable(loss):
            return DISTANCES[loss](outputs, target_outputs)
        return jnp.mean(loss(outputs, target_outputs))
    total, count = distance_parts(loss, outputs, target_outputs, valid)
    return total / jnp.maximum(count, 1)


def of_each_row(
    loss: str | Callable,
    axes: int,
    outputs: PyTree,
    target_outputs: PyTree,
    valid: validity.Valid = None,
) -> jax.Array:
    """The distance on every row, as on a batch of this row alone, float32 [R].

    Args:
      loss: see `distance`.
      axes: number of axes of positions that are rows of their own; 0 where examples are the rows.
      outputs, target_outputs: [B, ...].
      valid: bool [B] or [B, T]. The distance of an example is over the positions that count. Rows
        that do not count have distances too.

    Raises:
      TypeError, ValueError: a function that a single row does not fit.
    """

    def alone(leaf):
        rows, entries = leaf.shape[: 1 + axes], leaf.shape[1 + axes :]
        return leaf.reshape(math.prod(rows), *(1,) * (1 + axes), *entries)

    arguments = jax.tree.map(alone, (outputs, target_outputs))
    if valid is not None and not axes:
        arguments = *arguments, alone(valid)
    return jax.vmap(functools.partial(distance, loss))(*arguments).astype("float32")


def distance_parts(
    loss: str | Callable, outputs: PyTree, target_outputs: PyTree, valid: validity.Valid = None
) -> tuple[jax.Array, jax.Array]:
    """Sum and number of the distances that `distance` is the mean of.

    A function that gives a mean itself counts as often as there are examples.
    """
    if not callable(loss):
        return _PARTS[loss](outputs, target_outputs, valid)
    kept = (validity.keep(valid, tree) for tree in (outputs, target_outputs))
    values = jnp.asarray(loss(*kept))
    if valid is not None:
        return validity.parts(values, validity.of_values(valid, values, "minimality_loss"))
    if values.ndim == 0:
        size = jax.tree.leaves(outputs)[0].shape[0]
        return values * size, jnp.float32(size)
    return validity.parts(values, None)
