"""Which examples or positions of a batch count.

`valid` is bool [B], or [B, T] where positions count one by one; None where everything counts.
Letters: B batch, T positions (one axis or several), R rows (B examples, or B·T positions).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from apd_jax.errors import UserError
from apd_jax.programs.axes import spread
from apd_jax.sites import PyTree, batch_size
from apd_jax.sites.counted import check as check
from apd_jax.sites.counted import checked, of_entries, of_rows
from apd_jax.sites.counted import of_batch as of_batch
from apd_jax.sites.given_arrays import one_array

Valid = jax.Array | None


def as_given(valid: Any, x: PyTree) -> Valid:
    """What counts, as bool [B] or [B, T], of an array, a list or a function of the inputs.

    Raises:
      UserError: it gives no bool or whole numbers [B, ...].
    """
    if callable(valid):
        check(valid)
        return of_batch(valid, x)
    if valid is None:
        return None
    expected = "True or False for each example or position, or a function of the inputs"
    return checked(one_array(f"valid must be {expected} that gives this", valid), batch_size(x))


def of_outputs(valid: jax.Array, outputs: PyTree) -> jax.Array:
    """What counts of outputs (or their shapes): bool [B] where none of them has positions."""
    per_example = all(leaf.ndim <= valid.ndim for leaf in jax.tree.leaves(outputs))
    return of_rows(valid, valid.shape[:1]) if per_example else valid


def num_entries(valid: jax.Array, array: Any) -> jax.Array:
    """Number of entries of an array (or its shape) that count, float32."""
    counted = of_entries(valid, array)
    return jnp.sum(counted) * jnp.float32(math.prod(array.shape) / counted.size)


def of_values(valid: jax.Array, values: jax.Array, name: str) -> jax.Array:
    """Which of the values [B] or [B, T, ...] of a user's loss count.

    Raises:
      UserError: values that are not one for each example or position.
    """
    if values.shape[: valid.ndim] == valid.shape:
        return spread(valid, values.ndim)
    if values.shape[:1] == valid.shape[:1]:
        return spread(of_rows(valid, valid.shape[:1]), values.ndim)
    raise UserError(
        f"with valid, {name} must return values for each example or position, [{valid.shape[0]}, "
        f"...], so that those that don't count can be left out; got shape {values.shape}"
    )


def of_site_rows(valid: jax.Array, shape: tuple[int, ...], site: str) -> jax.Array:
    """Which rows of a use of a site count, for row axes `shape`, (B,) or (B, T, ...).

    Raises:
      UserError: positions count one by one, and the rows have axes, of which these are not the
        first.
    """
    if valid.ndim == 1 or shape[: valid.ndim] == valid.shape:
        return spread(valid, len(shape))
    if len(shape) == 1:
        return of_rows(valid, shape)
    raise UserError(
        f"valid gives shape {valid.shape}, but site {site!r} is used on rows {shape}, in which "
        "these positions are not the axes after the batch: choose other sites, or another loss "
        "or attribution"
    )


def keep(valid: Valid, tree: PyTree, what: str = "the network's outputs") -> PyTree:
    """Arrays with zeros where they don't count: NaN there reaches neither values nor gradients."""
    if valid is None:
        return tree

    def kept(array):
        return jnp.where(of_entries(valid, array, what), array, jnp.zeros((), array.dtype))

    return jax.tree.map(kept, tree)


def of_scores(valid: Valid, scores: jax.Array) -> jax.Array:
    """Scores [B, C] or [B, T, C] with zeros in the rows that don't count."""
    if valid is None:
        return scores
    return jnp.where(of_rows(valid, scores.shape[:-1])[..., None], scores, 0.0)


def evened(valid: Valid, flat: jax.Array, tree: PyTree) -> jax.Array:
    """Scale quantities [B, O] so that their mean square is that of the entries that count.

    Args:
      valid: what counts.
      flat: the leaves of `tree` side by side.
      tree: arrays [B, ...] with zeros where they don't count.
    """
    if valid is None:
        return flat
    counts: Any = 0
    for array in jax.tree.leaves(tree):
        counted = of_entries(valid, array).reshape(flat.shape[0], -1)
        counts = counts + counted.sum(axis=1) * (array.size // counted.size)
    scale = jnp.sqrt(flat.shape[1] / jnp.maximum(counts, 1))
    return flat * scale[:, None].astype(flat.dtype)


def mean(values: jax.Array, counted: jax.Array | None) -> jax.Array:
    """Mean of the values that count; 0 if none does.

    Args:
      values: [B, ...].
      counted: bool of a shape that broadcasts to `values`; None where everything counts.
    """
    if counted is None:
        return jnp.mean(values)
    total, count = parts(values, counted)
    return total / jnp.maximum(count, 1)


def parts(values: jax.Array, counted: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Sum and number of the values that count, float32."""
    if counted is None:
        return jnp.sum(values), jnp.float32(values.size)
    each = math.prod(values.shape) / max(counted.size, 1)
    return jnp.sum(jnp.where(counted, values, 0)), jnp.sum(counted) * jnp.float32(each)


def number(valid_rows: jax.Array) -> jax.Array:
    """Number of rows that count, at least 1, so that means over none are 0."""
    return jnp.maximum(jnp.sum(valid_rows), 1).astype(jnp.float32)
