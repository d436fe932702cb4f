"""Examples in blocks of one shape, the masks chosen on their rows, and masks made of these.

A row is what has a mask of its own: an example, or a position of one.
Letters: N examples, B examples of a block, T positions (one axis or several), R rows of a block,
C components.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import sites, validity
from apd_jax.blocks import num_blocks
from apd_jax.components import Components
from apd_jax.errors import UserError
from apd_jax.evaluation import seen
from apd_jax.evaluation.labels import are_classes, check_labels, label_array, next_tokens
from apd_jax.objective import selection
from apd_jax.objective.objective import Objective
from apd_jax.sites import PyTree, Target
from apd_jax.sites.given_arrays import as_numpy

Array = np.ndarray | jax.Array


class Examples(NamedTuple):
    """Examples, or a block of them.

    Attributes:
      x: [B, ...] inputs.
      counts: [B] or [B, T] float32, 1 for what counts and 0 for the rest, on the host.
      labels: [B] or [B, T] int32 classes, or None.
      label_counts: 1 where a label counts, of the shape of `labels`, or None.
      outputs: [B, ...] the target's outputs, which all lines of a block are compared with; None
        before the block is run.
    """

    x: PyTree
    counts: np.ndarray
    labels: np.ndarray | None = None
    label_counts: np.ndarray | None = None
    outputs: PyTree | None = None

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
    lead = (count, *(sites.position_shape(target, x) if per_position else ()))
    if callable(valid):
        validity.check(valid)
        valid = validity.of_batch(valid, x)
    counts = _counts(valid, lead, target, x)
    x = jax.tree.map(np.asarray, x)
    if labels is None:
        return Examples(x, counts), False
    if isinstance(labels, str):
        return _with_next_tokens(target, x, counts, labels), False
    labels = label_array(target, x, labels)
    (shape, *more) = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(target, x))]
    check_labels(labels, shape, 1 + len(more))
    if not are_classes(labels):
        return Examples(x, counts), True
    weights = _any_beyond(counts, labels.ndim)
    weights = weights.reshape(weights.shape + (1,) * (labels.ndim - weights.ndim))
    weights = (weights * (labels >= 0)).astype(np.float32)  # negative ones stand for no class
    return Examples(x, counts, np.maximum(labels, 0).astype(np.int32), weights), False


def _counts(valid: Any, lead: tuple[int, ...], target: Target, x: PyTree) -> np.ndarray:
    if valid is None:
        return np.ones(lead, np.float32)
    valid = as_numpy(valid)
    expected = [lead[:1]]
    if valid.ndim > 1:
        expected.append((*lead[:1], *sites.position_shape(target, x)))
    if valid.dtype.kind not in "biu" or valid.shape not in expected:
        raise UserError(
            f"valid must be true or false for every example, [{lead[0]}], or for every position of "
            f"outputs [N, T, O]; got {valid.dtype} of shape {valid.shape}"
        )
    counts = valid.astype(bool).astype(np.float32)
    if not counts.any():
        raise UserError("valid leaves no row that counts: evidence needs at least one")
    if counts.ndim < len(lead):
        counts = np.broadcast_to(counts.reshape(-1, *(1,) * (len(lead) - 1)), lead).copy()
    return counts


def _with_next_tokens(target: Target, x: PyTree, counts: np.ndarray, name: str) -> Examples:
    """Token t + 1 is the label of position t; the last position has none."""
    labels = next_tokens(target, x, name)
    here = counts if counts.ndim == 2 else np.repeat(counts[:, None], labels.shape[1], axis=1)
    weights = here * np.roll(here, -1, axis=1) * (labels >= 0)
    return Examples(x, counts, np.maximum(labels, 0), weights)


def blocks(all_examples: Examples, size: int) -> Iterator[Examples]:
    """Divide examples as `seen.blocks` does, all of one shape.

    Shorter blocks are filled up with an example that does not count, so that every pass through
    the network is compiled once.
    """
    count = len(all_examples.counts)
    parts = np.array_split(np.arange(count), num_blocks(count, size))
    longest = max(map(len, parts))
    for rows in parts:
        padded = np.concatenate([rows, np.repeat(rows[:1], longest - len(rows))])
        block = jax.tree.map(lambda leaf, r=padded: leaf[r], all_examples)
        here = np.arange(longest) < len(rows)
        yield block._replace(
            x=jax.tree.map(jnp.asarray, block.x),
            counts=_times(block.counts, here),
            label_counts=None if block.label_counts is None else _times(block.label_counts, here),
        )


def _times(counts: Any, rows: np.ndarray) -> Any:
    """Counts [B, ...] times rows [B] or [B, T]."""
    rows = rows.astype(counts.dtype)
    return counts * rows.reshape(rows.shape + (1,) * (counts.ndim - rows.ndim))


def pieces(
    block: Examples, mask: np.ndarray, most: int
) -> Iterator[tuple[Examples, np.ndarray, float]]:
    """Divide a block and its masks [B, (T), Q] so that a piece's masks have about `most` entries.

    Masks of many terms are much larger than anything else that a pass through the network holds.

    Yields:
      A piece, its masks, and its share of the block.
    """
    size = max(1, most * len(mask) // mask.size)
    x, outputs = jax.tree.map(np.asarray, (block.x, block.outputs))
    whole = block._replace(x=(x, mask), outputs=outputs)
    for piece in blocks(whole, size):
        x, here = piece.x
        yield piece._replace(x=x), np.asarray(here), 1 / max(1, len(mask) // size)


def rows_that_count(counts: np.ndarray, lead: tuple[int, ...]) -> np.ndarray:
    """Bool of shape `lead`, (B,) or (B, T): rows with anything that counts."""
    here = np.asarray(counts) > 0
    if here.ndim > len(lead):
        return _any_beyond(here, len(lead))
    return np.broadcast_to(here.reshape(here.shape + (1,) * (len(lead) - here.ndim)), lead)


def _any_beyond(array: np.ndarray, axes: int) -> np.ndarray:
    """Whether anything is true along the axes after the first ones; the array if it has no more."""
    later = tuple(range(axes, array.ndim))
    return np.asarray(array.any(axis=later)) if later else array


def choose(
    objective: Objective, target: Target, components: Components, block: Examples
) -> np.ndarray:
    """The active components of a block, bool [B, (T), C], none where a row does not count."""
    scores = seen.score(objective, target, components, block.x)
    return select(objective, np.asarray(scores), block)


def select(objective: Objective, scores: np.ndarray, block: Examples) -> np.ndarray:
    """Apply the selection rule to the rows that count: k is per row that counts."""
    valid = rows_that_count(block.counts, scores.shape[:-1])
    if objective.selection == "batch" and objective.topk is not None:
        counted = scores[..., :-1] if objective.distil else scores
        # Refuses a k that fits no block.
        selection.num_active(objective.topk, valid.size, counted.shape[-1])
        mask = largest(counted, objective.topk, block)
        if not objective.distil:
            return mask
        return np.concatenate([mask, valid[..., None]], axis=-1)
    x = block.x
    if objective.selection == "exact":  # counts inputs, those of rows that count
        x, scores = _times(x, valid), np.where(valid[..., None], scores, -np.inf)
    return np.asarray(objective.select(jnp.asarray(scores), x).mask) & valid[..., None]


def largest(scores: np.ndarray, k: float, block: Examples) -> np.ndarray:
    """Select the `floor(k·n)` largest scores, at least one, of the n rows that count."""
    valid = rows_that_count(block.counts, scores.shape[:-1])
    usable = np.where(valid[..., None], scores, -np.inf)
    return seen.highest(usable, max(int(np.floor(k * valid.sum())), 1))


class Pooled(NamedTuple):
    """Masks of groups.

    Attributes:
      mask: [B, (T), C] bool, for every row the union of the masks of its group.
      block: the block, in which rows of no complete group don't count.
      group: [B, (T)] int, number of the row's group.
    """

    mask: np.ndarray
    block: Examples
    group: np.ndarray


def pool(mask: np.ndarray, block: Examples, size: int) -> Pooled:
    """Give every row the union of the masks of its group.

    Groups are runs of `size` rows that count, in order; the rows left over, fewer than `size`, are
    left out. A block with fewer rows than that is one group.
    """
    lead, table = mask.shape[:-1], mask.reshape(-1, mask.shape[-1])
    places = np.flatnonzero(rows_that_count(block.counts, lead))
    width = max(min(size, len(places)), 1)
    number = len(places) // width
    places = places[: number * width]
    union = table[places].reshape(number, width, table.shape[1]).any(axis=1)
    pooled, group = np.zeros_like(table), np.full(len(table), number)  # one more for what is left
    pooled[places] = np.repeat(union, width, axis=0)
    group[places] = np.arange(len(places)) // width
    counts = block.counts
    rows = _any_beyond((group < number).reshape(lead), counts.ndim)
    block = block._replace(counts=_times(counts, rows))
    return Pooled(pooled.reshape(mask.shape), block, group.reshape(lead))


def permuted(mask: np.ndarray, counts: np.ndarray, key: jax.Array) -> np.ndarray:
    """Give every row that counts the mask of another: one cycle through all of them at random."""
    table = mask.reshape(-1, mask.shape[-1])
    places = np.flatnonzero(rows_that_count(counts, mask.shape[:-1]))
    order = np.random.default_rng(np.asarray(jax.random.key_data(key))).permutation(places)
    moved = np.zeros_like(table)
    moved[order] = table[np.roll(order, -1)]
    return moved.reshape(mask.shape)


def packed(mask: np.ndarray) -> np.ndarray:
    """A mask on the host, eight entries a byte."""
    return np.packbits(np.asarray(mask), axis=-1)


def unpacked(mask: np.ndarray, width: int) -> np.ndarray:
    """The inverse of `packed`."""
    return np.unpackbits(mask, axis=-1, count=width).astype(bool)
