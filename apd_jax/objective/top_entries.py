"""The highest finite scores of a table, exactly as many as asked for.

Letters: R rows, C components, K places for pairs. Ties go to the lower flat index.
"""

import jax
import jax.numpy as jnp

from apd_jax.errors import UserError
from apd_jax.objective import divided_topk
from apd_jax.objective.selected import Selected

_MOST = 2**31 - 1  # `lax.top_k` gives indices as int32


def ranked(scores: jax.Array) -> jax.Array:
    """Scores as they are compared: without gradient, -0 as 0, and -inf for what is not finite.

    `lax.top_k` orders by bit pattern: -0 would rank below 0, and a NaN first or last by its sign,
    which is negative for NaN computed on x86 and positive on GPUs. An infinite score is an
    overflow: it says no more about the order than NaN does.
    """
    scores = jax.lax.stop_gradient(scores)
    scores = jnp.where(jnp.isfinite(scores), scores, -jnp.inf)
    return jnp.where(scores == 0, jnp.zeros_like(scores), scores)


def of_last_axis(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Find the `count` highest finite scores along the last axis, without a scatter.

    `top_k` takes equal values by ascending index. Of the entries that equal the least value taken,
    the selected ones are therefore those up to the highest index taken, which two comparisons find;
    a scatter of the indices would be slower than the `top_k` itself on CPUs.

    Returns:
      The mask, the indices that `top_k` took, and whether each of these stands for a finite score.
    """
    scores = ranked(scores)
    # Only one of top_k's two results is read: with both, CPUs sort the whole table.
    _, indices = jax.lax.top_k(scores, count)
    values = jnp.take_along_axis(scores, indices, axis=-1)
    least = jnp.min(values, axis=-1, keepdims=True)
    last = jnp.max(jnp.where(values == least, indices, -1), axis=-1, keepdims=True)
    tied = (scores == least) & (jnp.arange(scores.shape[-1], dtype=last.dtype) <= last)
    mask = ((scores > least) | tied) & (scores > -jnp.inf)
    return mask, indices, values > -jnp.inf


def of_table(scores: jax.Array, most: int, count: jax.Array | int) -> Selected:
    """Activate the `count` pairs of highest score; `count` may be known only at run time.

    Args:
      scores: [R, C]; those that are not finite are never active.
      most: K, a bound on `count` (static).
      count: number of pairs, int32 scalar.

    Returns:
      The mask, and its pairs among K places.

    Raises:
      UserError: more scores than `lax.top_k` can rank.
    """
    if scores.size > _MOST:
        raise UserError(
            f"top-k ranks at most 2**31 - 1 scores together, got {scores.size}; with "
            "selection='batch' these are the rows of a batch times the components: lower "
            "batch_size or num_components, or set selection='sample', which ranks each row alone"
        )
    if divided_topk.applies(scores.shape):
        return divided_topk.batch_topk(ranked(scores), most, count)
    num_components = scores.shape[1]
    flat = ranked(scores.reshape(-1))
    _, indices = jax.lax.top_k(flat, most)
    # Equal values come by ascending index, so the last one taken bounds those tied with it.
    last = indices[jnp.maximum(count - 1, 0)]
    least = flat[last]
    mask = (flat > least) | ((flat == least) & (jnp.arange(flat.size) <= last))
    mask = mask & (flat > -jnp.inf) & (count > 0)
    taken = (jnp.arange(most) < count) & (flat[indices] > -jnp.inf)
    pairs = indices // num_components, jnp.where(taken, indices % num_components, num_components)
    return Selected(mask.reshape(scores.shape), pairs)
