"""Which components are active on which example: exact top-k masks.

Letters: B batch, C components, k active components per example, K = floor(k·B) in a batch.
Ties go to the lower flat index. Masks carry no gradient.
"""

import math

import jax
import jax.numpy as jnp


def num_active(k: float, batch_size: int, num_components: int) -> int:
    """`K = floor(k·B)`, the number of active (example, component) pairs in a batch.

    Args:
      k: active components per example on average; need not be whole.
      batch_size: B.
      num_components: C.

    Raises:
      ValueError: K is 0, or more than the B·C pairs that there are.
    """
    selected = math.floor(k * batch_size)
    if selected < 1:
        raise ValueError(
            f"k={k} selects nothing: floor(k·B) is {selected} at batch size {batch_size}; "
            f"k must be at least {1 / batch_size:g}, or the batch larger"
        )
    if selected > batch_size * num_components:
        raise ValueError(
            f"k={k} selects {selected} pairs, but {batch_size} examples and {num_components} "
            f"components make only {batch_size * num_components}; k must be at most "
            f"{num_components}"
        )
    return selected


def check_topk(k: float, num_components: int) -> None:
    """Raise ValueError unless k is a whole number in [1, C]."""
    if k != int(k) or not 1 <= k <= num_components:
        raise ValueError(
            f"top-k per example needs a whole k in [1, {num_components}], got {k}; "
            "a fractional k needs the batch-wide top-k"
        )


def batch_topk_pairs(scores: jax.Array, k: float) -> tuple[jax.Array, jax.Array]:
    """The `floor(k·B)` largest entries of the whole [B, C] table, as index pairs.

    Args:
      scores: [B, C] attributions.
      k: active components per example on average.

    Returns:
      (examples, components), int32 [K] each, largest score first.

    Raises:
      ValueError: k that selects nothing, or more than everything.
    """
    batch_size, num_components = scores.shape
    count = num_active(k, batch_size, num_components)
    _, flat = jax.lax.top_k(jax.lax.stop_gradient(scores).reshape(-1), count)
    return flat // num_components, flat % num_components


def topk_pairs(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest entries of each row of the [B, C] table, as index pairs.

    Args:
      scores: [B, C] attributions.
      k: active components per example, whole.

    Returns:
      (examples, components), int32 [B·k] each.

    Raises:
      ValueError: k not whole, below 1 or above C.
    """
    batch_size, num_components = scores.shape
    check_topk(k, num_components)
    _, chosen = jax.lax.top_k(jax.lax.stop_gradient(scores), int(k))
    return jnp.repeat(jnp.arange(batch_size, dtype=jnp.int32), int(k)), chosen.reshape(-1)


def pairs_to_mask(
    pairs: tuple[jax.Array, jax.Array], batch_size: int, num_components: int
) -> jax.Array:
    """The mask [B, C] bool that is true at the given (example, component) pairs."""
    return jnp.zeros((batch_size, num_components), bool).at[pairs].set(True)


def topk_mask(scores: jax.Array, k: int) -> jax.Array:
    """Activate the k components of highest attribution on each example.

    Args:
      scores: [B, C] attributions.
      k: how many, a whole number in [1, C].

    Returns:
      [B, C] bool, exactly k true in every row.

    Raises:
      ValueError: k not whole or out of range.
    """
    return pairs_to_mask(topk_pairs(scores, k), *scores.shape)


def batch_topk_mask(scores: jax.Array, k: float) -> jax.Array:
    """Activate the `floor(k·B)` pairs of highest attribution in the batch (the paper's choice).

    Args:
      scores: [B, C] attributions.
      k: active components per example on average; may be fractional.

    Returns:
      [B, C] bool, exactly floor(k·B) true.

    Raises:
      ValueError: k that selects nothing, or more than everything.
    """
    return pairs_to_mask(batch_topk_pairs(scores, k), *scores.shape)


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


def append_always_active(mask: jax.Array) -> jax.Array:
    """Add one component that is active on every example and not counted by k (distillation).

    Args:
      mask: [B, C - 1] bool over the other components.

    Returns:
      [B, C] bool.
    """
    return jnp.concatenate([mask, jnp.ones_like(mask[:, :1])], axis=1)
