"""Examples in blocks of one shape, the masks chosen on their rows, and masks made of these.

A row is what has a mask of its own: an example, or a position of one.
Letters: N examples, B examples of a block, T positions, R rows of a block, C components.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import sites
from apd_jax.components import Components
from apd_jax.errors import UserError
from apd_jax.objective import selection
from apd_jax.objective.objective import Objective
from apd_jax.sites import PyTree, Target

NEXT_TOKENS = "next_tokens"


class Examples(NamedTuple):
    """Examples, or a block of them.

    Attributes:
      x: [B, ...] inputs.
      counts: [B] or [B, T] float32, 1 for what counts and 0 for the rest.
      labels: [B] or [B, T] int32 classes, or None.
      label_counts: 1 where a label counts, of the shape of `labels`, or None.
    """

    x: PyTree
    counts: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array | None = None
    label_counts: np.ndarray | jax.Array | None = None

    def without_labels(self) -> "Examples":
        """The same without labels."""
        return self._replace(labels=None, label_counts=None)


def examples(
    target: Target, x: PyTree, labels: Any, valid: Any, per_position: bool
) -> tuple[Examples, bool]:
    """Check examples, what counts of them, and their labels.

    Args:
      target: the network.
      x: [N, ...] inputs.
      labels: whole numbers [N] or [N, T] for classes, values, `"next_tokens"` or None.
      valid: bool [N] or [N, T], a function of x that gives it, or None where everything counts.
      per_position: whether masks are chosen for every position.

    Returns:
      The examples, and whether there are labels that no cross entropy can be taken of (values).

    Raises:
      UserError: no example, none that counts, labels or `valid` of another shape.
    """
    count = sites.batch_size(x)
    length = sites.num_positions(target, x) if per_position else None
    counts = _counts(valid(x) if callable(valid) else valid, count, length, target, x)
    if labels is None:
        return Examples(x, counts), False
    if isinstance(labels, str):
        return _with_next_tokens(target, x, counts, labels), False
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iub":
        return Examples(x, counts), True
    (shape, *more) = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(target, x))]
    logits = shape[:-1] if len(shape) > 1 else shape
    if more or labels.shape != logits:
        raise UserError(
            f"labels have shape {labels.shape}; expected one class for each set of logits, "
            f"{logits}, of one array of outputs"
        )
    weights = counts if labels.ndim >= counts.ndim else counts.any(axis=1)
    weights = weights.reshape(weights.shape + (1,) * (labels.ndim - weights.ndim))
    weights = np.broadcast_to(weights, labels.shape).astype(np.float32)
    return Examples(x, counts, labels.astype(np.int32), weights), False


def _counts(valid, count: int, length: int | None, target: Target, x: PyTree) -> np.ndarray:
    if valid is None:
        return np.ones((count,) if length is None else (count, length), np.float32)
    valid = np.asarray(valid)
    if valid.ndim == 2:
        length = sites.num_positions(target, x)
    expected = [(count,), (count, length)]
    if valid.dtype.kind not in "biu" or valid.shape not in expected:
        raise UserError(
            f"valid must be true or false for every example, [{count}], or for every position of "
            f"outputs [N, T, O]; got {valid.dtype} of shape {valid.shape}"
        )
    counts = valid.astype(bool).astype(np.float32)
    if not counts.any():
        raise UserError("valid leaves no row that counts: evidence needs at least one")
    if counts.ndim == 1 and length is not None:
        counts = np.repeat(counts[:, None], length, axis=1)
    return counts


def _with_next_tokens(target: Target, x: PyTree, counts: np.ndarray, name: str) -> Examples:
    """Token t + 1 is the label of position t; the last position has none."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(x)]
    shapes = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(target, x))]
    fits = len(leaves) == len(shapes) == 1 and leaves[0].dtype.kind in "iu"
    fits = fits and len(shapes[0]) == 3 and leaves[0].shape == shapes[0][:2]
    if name != NEXT_TOKENS or not fits:
        raise UserError(
            f"labels={name!r}: expected classes, values, or {NEXT_TOKENS!r}, for which x must be "
            f"one array of tokens [N, T] and outputs logits [N, T, V]; outputs are {shapes}"
        )
    labels = np.roll(leaves[0], -1, axis=1).astype(np.int32)
    here = counts if counts.ndim == 2 else np.repeat(counts[:, None], labels.shape[1], axis=1)
    weights = here * np.roll(here, -1, axis=1)
    weights[:, -1] = 0
    return Examples(x, counts, labels, weights)


def blocks(all_examples: Examples, size: int) -> Iterator[Examples]:
    """Divide examples as `seen.blocks` does, all of one shape.

    Shorter blocks are filled up with an example that does not count, so that every pass through
    the network is compiled once.
    """
    count = len(all_examples.counts)
    parts = np.array_split(np.arange(count), max(1, count // size))
    longest = max(map(len, parts))
    for rows in parts:
        padded = np.concatenate([rows, np.repeat(rows[:1], longest - len(rows))])
        block = jax.tree.map(lambda leaf, r=padded: jnp.asarray(leaf)[r], all_examples)
        here = jnp.arange(longest) < len(rows)
        yield block._replace(
            counts=_times(block.counts, here),
            label_counts=None if block.label_counts is None else _times(block.label_counts, here),
        )


def _times(counts: jax.Array, rows: jax.Array) -> jax.Array:
    """Counts [B, ...] times rows [B] or [B, T]."""
    rows = rows.astype(counts.dtype)
    return counts * rows.reshape(rows.shape + (1,) * (counts.ndim - rows.ndim))


def rows_that_count(counts: jax.Array, lead: tuple[int, ...]) -> jax.Array:
    """Bool of shape `lead`, (B,) or (B, T): rows with anything that counts."""
    here = counts > 0
    if here.ndim > len(lead):
        return here.any(axis=tuple(range(len(lead), here.ndim)))
    return jnp.broadcast_to(here.reshape(here.shape + (1,) * (len(lead) - here.ndim)), lead)


@functools.partial(jax.jit, static_argnums=0)
def choose(
    objective: Objective, target: Target, components: Components, block: Examples
) -> jax.Array:
    """The active components of a block, bool [B, (T), C], none where a row does not count."""
    scores = objective.attribute(target, components, block.x).scores
    return select(objective, scores, block)


def select(objective: Objective, scores: jax.Array, block: Examples) -> jax.Array:
    """Apply the selection rule to the rows that count: k is per row that counts."""
    valid = rows_that_count(block.counts, scores.shape[:-1])
    table, rows = scores.reshape(-1, scores.shape[-1]), valid.reshape(-1)
    if objective.selection == "batch" and objective.topk is not None:
        counted = table[:, :-1] if objective.distil else table
        mask = _largest(counted, objective.topk, rows)
        if objective.distil:
            mask = jnp.concatenate([mask, jnp.ones((len(mask), 1), bool)], axis=1)
    else:
        x = block.x
        if objective.selection == "exact":  # counts inputs, those of rows that count
            x, table = _times(x, valid), jnp.where(rows[:, None], table, -jnp.inf)
        mask = objective.select(table.reshape(scores.shape), x).mask.reshape(table.shape)
    return (mask & rows[:, None]).reshape(scores.shape)


def _largest(scores: jax.Array, k: float, valid: jax.Array) -> jax.Array:
    """The `floor(k·n)` largest entries of the n valid rows, at least one; lower index at ties."""
    total, width = scores.shape
    selection.num_active(k, total, width)  # refuses a k that fits no block
    counts = np.maximum(np.floor(k * np.arange(total + 1)), 1).astype(np.int32)
    flat = jnp.where(jnp.isnan(scores) | ~valid[:, None], -jnp.inf, scores).reshape(-1)
    order = jnp.argsort(-jnp.where(flat == 0, 0.0, flat), stable=True)
    chosen = jnp.arange(flat.size) < jnp.asarray(counts)[jnp.sum(valid)]
    return jnp.zeros(flat.shape, bool).at[order].set(chosen).reshape(scores.shape)


@jax.jit
def partial(mask: jax.Array, r: jax.Array) -> jax.Array:
    """`s + (1 − s) r`: active components whole, the others scaled by r."""
    s = mask.astype(jnp.float32)
    return s + (1 - s) * r


class Pooled(NamedTuple):
    """Masks of groups.

    Attributes:
      mask: [B, (T), C] bool, for every row the union of the masks of its group.
      block: the block, in which rows of no complete group don't count.
      group: [B, (T)] int32, number of the row's group.
    """

    mask: jax.Array
    block: Examples
    group: jax.Array


@functools.partial(jax.jit, static_argnums=2)
def pool(mask: jax.Array, block: Examples, size: int) -> Pooled:
    """Give every row the union of the masks of its group.

    Groups are runs of `size` rows that count, in order; the rows left over, fewer than `size`, are
    left out. A block with fewer rows than that is one group.
    """
    lead = mask.shape[:-1]
    valid = rows_that_count(block.counts, lead).reshape(-1)
    table = mask.reshape(-1, mask.shape[-1])
    total = jnp.sum(valid)
    width = jnp.maximum(jnp.minimum(size, total), 1)
    group = (jnp.cumsum(valid) - 1) // width
    kept = valid & (group < total // width)
    group = jnp.where(kept, group, len(table))  # a last group of all that is left out
    union = jax.ops.segment_max(table.astype(jnp.int8), group, len(table) + 1) > 0
    pooled = (union[group] & kept[:, None]).reshape(mask.shape)
    rows = kept.reshape(lead)
    counts = block.counts
    rows = rows if rows.ndim <= counts.ndim else rows.any(axis=1)
    return Pooled(pooled, block._replace(counts=_times(counts, rows)), group.reshape(lead))


@jax.jit
def permuted(mask: jax.Array, counts: jax.Array, key: jax.Array) -> jax.Array:
    """Give every row that counts the mask of another: one cycle through all of them at random."""
    lead = mask.shape[:-1]
    valid = rows_that_count(counts, lead).reshape(-1)
    table = mask.reshape(-1, mask.shape[-1])
    order = jnp.argsort(jnp.where(valid, jax.random.uniform(key, valid.shape), 2.0))
    place = jnp.arange(len(order))
    following = jnp.where(place + 1 < jnp.sum(valid), place + 1, 0)
    source = jnp.zeros_like(order).at[order].set(order[following])
    return (table[source] & valid[:, None]).reshape(mask.shape)


def packed(mask: jax.Array) -> np.ndarray:
    """A mask on the host, eight entries a byte."""
    return np.packbits(np.asarray(mask), axis=-1)


def unpacked(mask: np.ndarray, width: int) -> np.ndarray:
    """The inverse of `packed`."""
    return np.unpackbits(mask, axis=-1, count=width).astype(bool)
