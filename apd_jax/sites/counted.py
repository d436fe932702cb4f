"""What a user's `valid` says of a batch: bool [B], or [B, T] where positions count one by one.

The rest of what is done with it is in `apd_jax.validity`, which builds on the sites.
Letters: B batch, T positions (one axis or several).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from apd_jax.config_fields import check_takes
from apd_jax.errors import UserError
from apd_jax.programs.axes import spread
from apd_jax.sites.rows import batch_size

PyTree = Any


def check(function: Any) -> None:
    """Raise UserError unless `valid` is a function of the batch, or None."""
    if function is None:
        return
    if not callable(function):
        raise UserError(
            "valid must be a function of the batch, such as lambda batch: batch['mask'], got a "
            f"{type(function).__name__}"
        )
    check_takes("valid", function, "batch")


def of_batch(function: Callable[[PyTree], Any] | None, x: PyTree) -> jax.Array | None:
    """What a function says of a batch, as bool [B] or [B, T].

    Args:
      function: function of the batch, traced by JAX; None where everything counts.
      x: [B, ...] inputs.

    Raises:
      UserError: it can't be traced, or gives no bool or whole numbers [B, ...].
    """
    if function is None:
        return None
    try:
        valid = jnp.asarray(function(x))
    except Exception as error:  # whatever the function says to a batch, or to being traced
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            "valid is called with a batch and traced by JAX, which fails "
            f"({type(error).__name__}: {reason:.300}): use jax.numpy, as in "
            "valid=lambda batch: batch['mask'] > 0"
        ) from error
    return checked(valid, batch_size(x))


def checked(valid: jax.Array, size: int) -> jax.Array:
    """What counts as bool.

    Raises:
      UserError: neither bool nor whole numbers, or not one for each of `size` examples.
    """
    if not (jnp.issubdtype(valid.dtype, jnp.integer) or valid.dtype == bool):
        raise UserError(
            f"valid must give True or False (or whole numbers, 0 for what does not count), got "
            f"{valid.dtype}: compare, as in valid=lambda batch: batch['mask'] > 0"
        )
    if valid.shape[:1] != (size,):
        raise UserError(
            f"valid must give one value for each example, [{size}], or for each position, "
            f"[{size}, T]; got shape {valid.shape}"
        )
    return valid != 0


def of_rows(valid: jax.Array, lead: Sequence[int]) -> jax.Array:
    """Which rows of a table [*lead, C] count, bool of shape `lead`, (B,) or (B, T).

    An example counts if any of its positions does; of an example that counts all positions do.

    Raises:
      UserError: positions of another number.
    """
    lead, shared = tuple(lead), min(valid.ndim, len(lead))
    if valid.shape[:shared] != lead[:shared]:
        raise UserError(
            f"valid gives shape {valid.shape}, but components are chosen for positions {lead}"
        )
    if valid.ndim > shared:
        return jnp.any(valid, axis=tuple(range(shared, valid.ndim)))
    return jnp.broadcast_to(spread(valid, len(lead)), lead)


def of_entries(valid: jax.Array, array: jax.Array, what: str = "the network's outputs") -> Any:
    """Which entries of an array [B, ...] or [B, T, ...] count, of a shape that broadcasts to it.

    Raises:
      UserError: the array has other positions, or it can't be told whether it has some.
    """
    shape = array.shape
    if array.ndim == valid.ndim > 1 and shape == valid.shape:
        raise UserError(
            f"valid gives shape {valid.shape}, and {what} have the same shape: return "
            f"{(*shape, 1)} for one output at each position, or let valid give [{shape[0]}]"
        )
    if array.ndim <= valid.ndim:
        return spread(of_rows(valid, shape[:1]), array.ndim)
    if shape[: valid.ndim] != valid.shape:
        raise UserError(
            f"valid gives shape {valid.shape}, but {what} have shape {shape}, in which these "
            "positions are not the axes after the batch"
        )
    return spread(valid, array.ndim)
