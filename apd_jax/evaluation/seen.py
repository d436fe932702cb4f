"""Attributions, active components and errors on examples, computed in blocks.

Of outputs no more than a block is ever held: errors are sums over blocks.
Letters: N examples, T positions (one axis or several), R rows that count (of the N, or of the N·T
where components are chosen for every position), C components.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import sites, validity
from apd_jax.blocks import num_blocks
from apd_jax.components import Components, num_components
from apd_jax.errors import UserError
from apd_jax.evaluation.measured import Measured, MeasuredSums, row_errors
from apd_jax.masked import forward
from apd_jax.objective.objective import Objective
from apd_jax.programs.compiled import jit_with_network
from apd_jax.runtime.preemption import stop_if_asked
from apd_jax.sites import PyTree, Target


class Seen(NamedTuple):
    """Attributions, masks and errors of N examples.

    Attributes:
      scores: [R, C] attributions.
      mask: [R, C] bool, the active components.
      lead: (N,) or (N, T), the axes that rows stand for.
      rows: [R] numbers of the rows among all N, or N·T, in ascending order.
      network: quality of the target's outputs.
      active: error and quality of the outputs with only the active components.
      errors: [R] distance of these outputs from the target's on every row; None where the caller's
        loss has no value for a single row.
    """

    scores: np.ndarray
    mask: np.ndarray
    lead: tuple[int, ...]
    rows: np.ndarray
    network: Measured
    active: Measured
    errors: np.ndarray | None = None

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Number of the example, and of the position along each axis, of some of the R rows."""
        return np.unravel_index(self.rows[rows], self.lead)


class CurvePoint(NamedTuple):
    """The outputs under a batch top-k mask.

    Attributes:
      active: mean number of active components of a row.
      rank: their mean rank.
      measured: error and quality.
    """

    active: float
    rank: float
    measured: Measured


@jit_with_network(static=1)
def score(objective: Objective, target: Target, components: Components, x: PyTree) -> jax.Array:
    """Attributions [B, (T), C], also of batches that are too small for k to select anything."""
    return objective.attribute(target, components, x).scores


@jit_with_network(static=1)
def look(
    objective: Objective, target: Target, components: Components, x: PyTree
) -> tuple[jax.Array, jax.Array, PyTree]:
    """Attributions [B, (T), C], active components of the same shape, and the target's outputs."""
    attributed = objective.attribute(target, components, x)
    chosen = objective.select(attributed.scores, x)
    return attributed.scores, chosen.mask, attributed.outputs


@jit_with_network(static=1)
def _score_and_run(objective, target, components, x):
    """Attributions [B, (T), C], and the target's outputs."""
    attributed = objective.attribute(target, components, x)
    return attributed.scores, attributed.outputs


@jit_with_network
def _run(target, x):
    return target(x)


def see(
    objective: Objective,
    target: Target,
    components: Components,
    x: PyTree,
    size: int,
    labels: Any = None,
) -> Seen:
    """Compute what `Seen` holds, in blocks of about `size`, the batch size of the training.

    Batch top-k selects by comparison within a block: blocks have the size of training batches, so
    that the selection is as strict as in training.

    Raises:
      UserError: labels that don't fit the outputs, or no row that counts.
    """
    network, active = (
        MeasuredSums(objective, target, sites.batch_size(x), labels) for _ in range(2)
    )
    scores: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    errors: list[np.ndarray] = []
    lead: tuple[int, ...] = ()
    for place, block in blocks(x, size):
        found, mask, outputs = look(objective, target, components, block)
        masked = forward.masked_apply(target, components, block, mask)
        network.add(place, block, outputs, outputs)
        active.add(place, block, masked, outputs)
        lead = found.shape[1:-1]
        kept = counted_rows(objective, block, found.shape[:-1])
        errors.append(_errors(objective, target, masked, outputs, block, lead)[kept])
        rows.append(kept + place.start * int(np.prod(lead)))
        for parts, table in ((scores, found), (masks, mask)):
            parts.append(np.asarray(table).reshape(-1, table.shape[-1])[kept])
    places, each = np.concatenate(rows), np.concatenate(errors)
    if not len(places):
        raise UserError("valid excludes every row of these examples")
    # A loss of the caller's may have a mean over batches, and none for single rows.
    usable = np.isfinite(each).all() or not np.isfinite(active.result().error)
    return Seen(
        np.concatenate(scores),
        np.concatenate(masks),
        (sites.batch_size(x), *lead),
        places,
        network.result(),
        active.result(),
        each if usable else None,
    )


def _errors(objective, target, masked, outputs, block, lead) -> np.ndarray:
    """Errors of all rows of a block; NaN where the caller's loss fails on a single row."""
    try:
        return np.asarray(row_errors(objective, len(lead), target, masked, outputs, block))
    except (TypeError, ValueError):
        if not callable(objective.minimality_loss):
            raise
        return np.full(sites.batch_size(block) * int(np.prod(lead)), np.nan, np.float32)


def points(
    ks: list[float],
    objective: Objective,
    target: Target,
    components: Components,
    x: PyTree,
    size: int,
    *,
    found: Seen | None = None,
    ranks: np.ndarray | None = None,
    labels: Any = None,
) -> list[CurvePoint]:
    """Outputs under batch top-k with several k, each selected in blocks as in `see`.

    Args:
      ks: the values of k.
      objective, target, components, x, size: see `see`.
      found: attributions of the same examples, if they are known.
      ranks: [C] rank of every component; ones if None.
      labels: see `Decomposition.summary`.
    """
    all_sums = [MeasuredSums(objective, target, sites.batch_size(x), labels) for _ in ks]
    totals, rows = np.zeros((len(ks), 2)), 0
    for place, block in blocks(x, size):
        if found is None:
            scores, outputs = _score_and_run(objective, target, components, block)
            scores = np.asarray(scores)
            kept = counted_rows(objective, block, scores.shape[:-1])
        else:
            scores, kept = _scores_of(found, place)
            outputs = _run(target, block)
        table = scores.reshape(-1, scores.shape[-1])
        own = np.ones(table.shape[1]) if ranks is None else ranks
        rows += len(kept)
        for number, k in enumerate(ks):
            mask = np.zeros(table.shape, bool)
            # k may be a mean over rows, times whose number it can be rounded below a whole number.
            mask[kept] = highest(table[kept], int(k * len(kept) + 1e-6))
            masked = forward.masked_apply(
                target, components, block, jnp.asarray(mask.reshape(scores.shape))
            )
            all_sums[number].add(place, block, masked, outputs)
            totals[number] += mask.sum(), (mask @ own).sum()
    means = (totals / max(rows, 1)).tolist()
    return [
        CurvePoint(active, rank, sums.result())
        for (active, rank), sums in zip(means, all_sums, strict=True)
    ]


def at_weight(
    weight: float,
    objective: Objective,
    target: Target,
    components: Components,
    x: PyTree,
    size: int,
    labels: Any = None,
) -> Measured:
    """Outputs with every component at the same weight."""
    sums = MeasuredSums(objective, target, sites.batch_size(x), labels)
    for place, block in blocks(x, size):
        mask = jnp.full((sites.batch_size(block), num_components(components)), weight, jnp.float32)
        sums.add(
            place,
            block,
            forward.masked_apply(target, components, block, mask),
            _run(target, block),
        )
    return sums.result()


def blocks(x: PyTree, size: int) -> Iterator[tuple[slice, PyTree]]:
    """Divide examples into nearly equal blocks, none of them smaller than `size` if possible.

    Yields:
      The place of a block among the examples, and the block, on the device.
    """
    count = sites.batch_size(x)
    host = jax.tree.map(np.asarray, x)
    for rows in np.array_split(np.arange(count), num_blocks(count, size)):
        stop_if_asked()
        place = slice(int(rows[0]), int(rows[-1]) + 1)
        yield place, jax.tree.map(lambda leaf, p=place: jnp.asarray(leaf[p]), host)


def counted_rows(objective: Objective, block: PyTree, lead: tuple[int, ...]) -> np.ndarray:
    """Numbers of the rows of a block that count."""
    valid = objective.counted(block)
    if valid is None:
        return np.arange(int(np.prod(lead)))
    return np.flatnonzero(np.asarray(validity.of_rows(valid, lead)))


def _scores_of(found: Seen, place: slice) -> tuple[np.ndarray, np.ndarray]:
    """Attributions [B, (T), C] of a block, zeros where nothing counts; and the rows that count."""
    lead = found.lead[1:]
    each = int(np.prod(lead))
    first, last = np.searchsorted(found.rows, (place.start * each, place.stop * each))
    kept = found.rows[first:last] - place.start * each
    size = place.stop - place.start
    table = np.zeros((size * each, found.scores.shape[1]), found.scores.dtype)
    table[kept] = found.scores[first:last]
    return table.reshape(size, *lead, -1), kept


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest scores of a table, as a mask of its shape.

    On the host: XLA takes seconds to compile a sort for CPUs, once for every shape and count. Of
    equal scores those of lower index are taken, and none that is not finite.
    """
    flat = np.where(np.isfinite(scores), scores, -np.inf).ravel()
    count = min(count, flat.size)
    if count == 0:
        return np.zeros(scores.shape, bool)
    least = np.partition(flat, flat.size - count)[flat.size - count]
    mask = flat > least
    mask[np.flatnonzero(flat == least)[: count - mask.sum()]] = True
    return (mask & (flat > -np.inf)).reshape(scores.shape)
