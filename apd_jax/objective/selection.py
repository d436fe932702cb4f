"""Which components are active on which example: exact top-k masks.

Letters: B batch, C components, k active components per example, K = floor(k·B) in a batch.
Ties go to the lower flat index. Masks carry no gradient. A score that is NaN or infinite is never
selected: where fewer than K scores are finite, fewer are active.
"""

import math
import warnings
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import validity
from apd_jax.config_fields import values
from apd_jax.errors import UserError
from apd_jax.objective import top_entries
from apd_jax.objective.selected import Selected
from apd_jax.programs.axes import spread
from apd_jax.sites import PyTree
from apd_jax.sites.given_arrays import one_array

Rule = Literal["batch", "sample", "exact", "gates"]


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
        raise UserError(f"k must be at most the number of components ({num_components}), got {k}")
    return selected


def check_topk(k: float, num_components: int) -> None:
    """Raise UserError unless k is a whole number in [1, C]."""
    if not values.KINDS[float](k) or not 1 <= k <= num_components or k != int(k):
        raise UserError(
            f"top-k per example needs a whole k in [1, {num_components}], got {k}; "
            "a fractional k needs the batch-wide top-k, selection='batch' (or batch_topk_mask)"
        )


def check_sizes(
    rule: Rule, k: float | None, distil: bool, num_rows: int | None, num_components: int
) -> None:
    """Raise UserError where k does not fit; see `Objective.check_sizes`."""
    candidates = num_components - distil
    if candidates < 1:
        raise UserError(
            f"distil needs num_components of at least 2, got {num_components}: the last one is "
            "always active and is not counted"
        )
    if k is None or rule == "exact":
        return
    if k > candidates:
        less = " - 1, since distil keeps the last one active" if distil else ""
        raise UserError(f"topk must be at most num_components{less} ({candidates}), got {k}")
    try:
        if rule == "sample":
            check_topk(k, candidates)
            return
        if num_rows is None:
            # As many rows as k needs to select one pair: the batch itself is checked when it comes.
            num_rows = math.ceil(1 / k) if k > 0 else 1
        num_active(k, num_rows, candidates)
    except UserError as error:
        sizes = f"num_components={num_components}" + (" with distil" if distil else "")
        raise UserError(f"topk does not fit batch_size and {sizes}: {error}") from error


class Products(NamedTuple):
    """k times every number of rows, exact in float64; k itself may be known only at run time.

    Attributes:
      largest: the largest k that the others may come from; places are kept for as many pairs.
      whole: int32 [R + 1], `floor(k·n)` for n rows.
      real: float32 [R + 1], `k·n`.
    """

    largest: float
    whole: jax.Array | np.ndarray
    real: jax.Array | np.ndarray

    @classmethod
    def of(cls, k: float, most_rows: int, largest: float | None = None) -> "Products":
        """The products of k with 0 to R rows."""
        # A product of k in float32 would round to a whole number that the exact one does not reach.
        exact = k * np.arange(most_rows + 1)
        whole = np.floor(exact).astype(np.int32)
        return cls(k if largest is None else largest, whole, exact.astype(np.float32))


def batch_topk(
    scores: jax.Array,
    k: float | Products,
    rows: jax.Array | None = None,
    factor: jax.Array | None = None,
) -> Selected:
    """Activate the `floor(k·V)` pairs of highest attribution among the V rows that count.

    Args:
      scores: [B, C] attributions.
      k: active components on average per row that counts.
      rows: [B] bool, the rows that count; None for all.
      factor: scalar in [0, 1], known only at run time, what k is multiplied by: then
        `floor(factor·k·V)` pairs are active, at least one. None for 1.

    Returns:
      The mask, and its pairs among `floor(k·B)` places, of the largest k. With a factor of a known
      k and all rows, pairs are None.
    """
    batch_size, num_components = scores.shape
    largest = k.largest if isinstance(k, Products) else k
    most = num_active(largest, batch_size, num_components)
    products = k if isinstance(k, Products) else Products.of(k, batch_size)
    assert batch_size < len(products.whole), "an index beyond the end would be clipped in silence"
    total: Any = batch_size
    if rows is not None:
        products = Products(products.largest, *map(jnp.asarray, products[1:]))
        total = jnp.sum(rows)
        scores = jnp.where(rows[:, None], scores, -jnp.inf)
    count = products.whole[total]
    if factor is not None:
        part = jnp.floor(factor * products.real[total]).astype(jnp.int32)
        count = jnp.where(factor >= 1, count, jnp.clip(part, jnp.minimum(count, 1), count))
    chosen = top_entries.of_table(scores, most, count)
    is_part = factor is not None and rows is None and not isinstance(k, Products)
    return chosen._replace(pairs=None) if is_part else chosen


def sample_topk(scores: jax.Array, k: float, factor: jax.Array | None = None) -> Selected:
    """Activate the k components of highest attribution on each example; see `topk_mask`.

    Args:
      scores: [B, C] attributions.
      k: active components per example.
      factor: scalar in [0, 1], known only at run time: `floor(k · factor)` are active, at least
        one; None for k.
    """
    batch_size, num_components = scores.shape
    check_topk(k, num_components)
    mask, chosen, finite = top_entries.of_last_axis(scores, int(k))
    if factor is not None:
        count = jnp.clip(jnp.floor(jnp.float32(k) * factor), 1, k).astype(jnp.int32)
        # They come in descending order, equal ones by ascending index.
        last, ranked = jnp.take(chosen, count - 1, axis=1)[:, None], top_entries.ranked(scores)
        least = jnp.take_along_axis(ranked, last, axis=1)
        mask &= (ranked > least) | ((ranked == least) & (jnp.arange(num_components) <= last))
        finite &= jnp.arange(int(k)) < count
    examples = jnp.repeat(jnp.arange(batch_size, dtype=chosen.dtype), int(k))
    components = jnp.where(finite, chosen, num_components)
    return Selected(mask, (examples, components.reshape(-1)))


def _table(scores: Any) -> jax.Array:
    """Scores as an array; raises UserError unless they are [B, C], and warns of those not finite.

    Traced values are not known, and pass.
    """
    scores = one_array("scores must be real numbers [B, C]", scores)
    if scores.ndim != 2 or jnp.issubdtype(scores.dtype, jnp.complexfloating):
        raise UserError(
            "scores must be real numbers [B, C], one row for each example, got "
            f"{scores.dtype}{list(scores.shape)}; of positions [B, T, C] give "
            "scores.reshape(-1, C)"
        )
    count = 0 if isinstance(scores, jax.core.Tracer) else int(jnp.sum(~jnp.isfinite(scores)))
    if count:
        warnings.warn(
            f"{count} of {jnp.size(scores)} scores are NaN or infinite: these pairs of example and "
            "component are not selected",
            RuntimeWarning,
            stacklevel=3,
        )
    return scores


def topk_mask(scores: jax.Array, k: int) -> jax.Array:
    """Activate the k components of highest attribution on each example.

    Args:
      scores: [B, C] attributions.
      k: number of active components, a whole number in [1, C].

    Returns:
      [B, C] bool, exactly k true in every row; fewer in a row with fewer than k finite scores.

    Raises:
      UserError: k not whole or out of range, scores of another shape.

    Warns:
      RuntimeWarning: scores that are NaN or infinite, which are never selected (not under `jit`,
        where values are not known).
    """
    scores = _table(scores)
    return sample_topk(scores, values.number(k)).mask


def batch_topk_mask(scores: jax.Array, k: float) -> jax.Array:
    """Activate the `floor(k·B)` pairs of highest attribution in the batch (the paper's choice).

    Args:
      scores: [B, C] attributions.
      k: active components per example on average; may be fractional.

    Returns:
      [B, C] bool, exactly floor(k·B) true; fewer where fewer scores are finite.

    Raises:
      UserError: k that selects nothing, or more than everything; scores of another shape.

    Warns:
      RuntimeWarning: scores that are NaN or infinite, which are never selected (not under `jit`,
        where values are not known).
    """
    scores = _table(scores)
    return batch_topk(scores, values.finite("k", k)).mask


def exact_topk_mask(scores: jax.Array, x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Batch top-k with as many active pairs as the batch has active inputs (a diagnostic).

    Args:
      scores: [B, C] attributions.
      x: [B, F] inputs; an input is active where it is not 0.
      valid: bool [B] or [B, T], which inputs count; None for all. The scores of rows that don't
        count are to be NaN.

    Returns:
      [B, C] bool, exactly `min(count_nonzero(x), B·C)` true; fewer where fewer scores are finite.
    """
    flat = top_entries.ranked(scores).reshape(-1)
    rank = jnp.argsort(jnp.argsort(-flat, stable=True), stable=True)
    counted = x != 0
    if valid is not None:
        shared = min(valid.ndim, x.ndim)
        counted = counted & spread(validity.of_rows(valid, x.shape[:shared]), x.ndim)
    mask = (rank < jnp.count_nonzero(counted)) & (flat > -jnp.inf)
    return mask.reshape(scores.shape)


def select_rows(
    rule: Rule,
    k: float | Products | None,
    scores: jax.Array,
    x: PyTree,
    *,
    multiplier: jax.Array | None = None,
    valid: validity.Valid = None,
    rows: jax.Array | None = None,
) -> Selected:
    """Apply a rule to the rows of a table.

    Args:
      rule: `"exact"` (k is not used), `"sample"`, or `"batch"`.
      k: active components per row.
      scores: [R, C], one row for each example or position.
      x: [B, ...] inputs.
      multiplier: what k is multiplied by, in [0, 1]; not for the exact rule.
      valid: which examples or positions count, and `rows` [R] which rows; None where all do. The
        scores of the other rows are NaN.

    Raises:
      UserError: the exact rule for inputs that are no single array.
    """
    if rule == "exact":
        if not hasattr(x, "shape"):
            raise UserError(
                "selection 'exact' counts the active inputs of one array [B, F], got a "
                f"{type(x).__name__} of arrays; use 'batch' or 'sample'"
            )
        return Selected(exact_topk_mask(scores, x, valid), None)
    assert k is not None  # or nothing would be selected
    if rule == "sample":
        assert not isinstance(k, Products), "the rule for every sample needs a k that is known"
        return sample_topk(scores, k, multiplier)
    return batch_topk(scores, k, rows, multiplier)
