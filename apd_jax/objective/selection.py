"""Which components are active on which example: exact top-k masks.

Letters: B batch, C components, k active components per example, K = floor(k·B) in a batch.
Ties go to the lower flat index. Masks carry no gradient.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from apd_jax.errors import UserError


def num_active(k: float, batch_size: int, num_components: int) -> int:
    """`K = floor(k·B)`, the number of active (example, component) pairs in a batch.

    Args:
      k: active components per example on average; need not be whole.
      batch_size: B.
      num_components: C.

    Raises:
      UserError: K is 0, or more than the B·C pairs that there are; or the batch is empty.
    """
    if batch_size < 1:
        raise UserError("the batch is empty: a selection needs at least one example")
    if not math.isfinite(k):
        raise UserError(f"k must be a finite number, got {k}")
    selected = math.floor(k * batch_size)
    if selected < 1:
        raise UserError(
            f"k={k} selects nothing: floor(k·B) is {selected} at batch size {batch_size}; "
            f"k must be at least {1 / batch_size:g}, or the batch larger"
        )
    if selected > batch_size * num_components:
        raise UserError(
            f"k={k} selects {selected} pairs, but {batch_size} examples and {num_components} "
            f"components make only {batch_size * num_components}; k must be at most "
            f"{num_components}"
        )
    return selected


def check_topk(k: float, num_components: int) -> None:
    """Raise UserError unless k is a whole number in [1, C]."""
    if not 1 <= k <= num_components or k != int(k):
        raise UserError(
            f"top-k per example needs a whole k in [1, {num_components}], got {k}; "
            "a fractional k needs the batch-wide top-k"
        )


def _ranked(scores: jax.Array) -> jax.Array:
    """Scores as they are compared: no gradient, -0 (below 0 for `top_k`) as 0, NaN below all."""
    scores = jax.lax.stop_gradient(scores)
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    return jnp.where(scores == 0, jnp.zeros_like(scores), scores)


class Selected(NamedTuple):
    """The active (example, component) pairs of a batch.

    Attributes:
      mask: [B, C] bool, or [B, T, C] where components are chosen for every position.
      pairs: (rows, components), int32 [K] each, in no particular order, positions counted through
        the examples; None where their number depends on the data.
    """

    mask: jax.Array
    pairs: tuple[jax.Array, jax.Array] | None

    def counts(self) -> jax.Array:
        """On how many rows (examples, or positions of them) each component is active, int32 [C]."""
        if self.pairs is None:
            rows = self.mask.reshape(-1, self.mask.shape[-1])
            return jnp.sum(rows, axis=0, dtype=jnp.int32)
        # Counting K pairs costs far less than summing B·C entries of the mask.
        components = self.pairs[1]
        return jnp.zeros((self.mask.shape[-1],), jnp.int32).at[components].add(1)


def batch_topk(scores: jax.Array, k: float) -> Selected:
    """Activate the `floor(k·B)` pairs of highest attribution; see `batch_topk_mask`."""
    batch_size, num_components = scores.shape
    mask, flat = _largest(scores.reshape(-1), num_active(k, batch_size, num_components))
    pairs = flat // num_components, flat % num_components
    return Selected(mask.reshape(scores.shape), pairs)


def batch_topk_part(scores: jax.Array, k: float, factor: jax.Array) -> Selected:
    """Activate the `floor(factor·k·B)` pairs of highest attribution, at least one.

    Args:
      scores: [B, C] attributions.
      k: active components per example on average, at a factor of 1.
      factor: scalar in [0, 1], known only at run time.

    Returns:
      The mask; its pairs are None, since their number depends on the factor.
    """
    batch_size, num_components = scores.shape
    most = num_active(k, batch_size, num_components)
    count = jnp.floor(factor * (k * batch_size)).astype(jnp.int32)
    count = jnp.clip(jnp.where(factor >= 1, most, count), 1, most)
    flat = _ranked(scores.reshape(-1))
    _, indices = jax.lax.top_k(flat, most)
    # Equal values come by ascending index, so the last one taken bounds those tied with it.
    last = indices[count - 1]
    least = flat[last]
    mask = (flat > least) | ((flat == least) & (jnp.arange(flat.size) <= last))
    return Selected(mask.reshape(scores.shape), None)


def sample_topk(scores: jax.Array, k: float) -> Selected:
    """Activate the k components of highest attribution on each example; see `topk_mask`."""
    batch_size, num_components = scores.shape
    check_topk(k, num_components)
    mask, chosen = _largest(scores, int(k))
    examples = jnp.repeat(jnp.arange(batch_size, dtype=chosen.dtype), int(k))
    return Selected(mask, (examples, chosen.reshape(-1)))


def _largest(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Mask and indices of the `count` largest entries along the last axis, without a scatter.

    `top_k` takes equal values by ascending index: of those equal to the least value selected, the
    ones up to the highest index that it took.
    """
    scores = _ranked(scores)
    # Only one of top_k's two results is read: with both, CPUs sort the whole table.
    _, indices = jax.lax.top_k(scores, count)
    values = jnp.take_along_axis(scores, indices, axis=-1)
    least = jnp.min(values, axis=-1, keepdims=True)
    last = jnp.max(jnp.where(values == least, indices, -1), axis=-1, keepdims=True)
    tied = (scores == least) & (jnp.arange(scores.shape[-1], dtype=last.dtype) <= last)
    return (scores > least) | tied, indices


def topk_mask(scores: jax.Array, k: int) -> jax.Array:
    """Activate the k components of highest attribution on each example.

    Args:
      scores: [B, C] attributions.
      k: how many, a whole number in [1, C].

    Returns:
      [B, C] bool, exactly k true in every row.

    Raises:
      UserError: k not whole or out of range.
    """
    return sample_topk(scores, k).mask


def batch_topk_mask(scores: jax.Array, k: float) -> jax.Array:
    """Activate the `floor(k·B)` pairs of highest attribution in the batch (the paper's choice).

    Args:
      scores: [B, C] attributions.
      k: active components per example on average; may be fractional.

    Returns:
      [B, C] bool, exactly floor(k·B) true.

    Raises:
      UserError: k that selects nothing, or more than everything.
    """
    return batch_topk(scores, k).mask


def exact_topk_mask(scores: jax.Array, x: jax.Array) -> jax.Array:
    """Batch top-k with as many active pairs as the batch has active inputs (a diagnostic).

    Args:
      scores: [B, C] attributions.
      x: [B, F] inputs; an input is active where it is not 0.

    Returns:
      [B, C] bool, exactly `min(count_nonzero(x), B·C)` true.
    """
    flat = jax.lax.stop_gradient(scores).reshape(-1)
    rank = jnp.argsort(jnp.argsort(-flat, stable=True), stable=True)
    return (rank < jnp.count_nonzero(x)).reshape(scores.shape)


def add_always_active(selected: Selected) -> Selected:
    """Add one component that is active on every example and not counted by k (distillation).

    Args:
      selected: the selection among the other components, mask [B, C - 1].

    Returns:
      The selection with mask [B, C], its last column true.
    """
    batch_size, last = selected.mask.shape
    mask = jnp.concatenate([selected.mask, jnp.ones((batch_size, 1), bool)], axis=1)
    if selected.pairs is None:
        return Selected(mask, None)
    examples, components = selected.pairs
    every = jnp.arange(batch_size, dtype=examples.dtype)
    pairs = jnp.concatenate([examples, every]), jnp.concatenate([components, 0 * every + last])
    return Selected(mask, pairs)
