"""Attributions, active components and outputs on examples, computed in blocks.

Letters: N examples, T positions, R rows (N, or N·T where components are chosen for every position),
C components.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import sites
from apd_jax.components import Components
from apd_jax.masked import forward
from apd_jax.objective.objective import Objective
from apd_jax.objective.terms import DISTANCES
from apd_jax.sites import PyTree, Target


class Seen(NamedTuple):
    """Attributions, masks and outputs of N examples.

    Attributes:
      scores: [R, C] attributions.
      mask: [R, C] bool, the active components.
      lead: (N,) or (N, T), the axes that rows stand for.
      outputs: the target's outputs, [N, ...].
      active: outputs with only the active components, [N, ...].
    """

    scores: np.ndarray
    mask: np.ndarray
    lead: tuple[int, ...]
    outputs: PyTree
    active: PyTree


@functools.partial(jax.jit, static_argnums=0)
def score(objective: Objective, target: Target, components: Components, x: PyTree) -> jax.Array:
    """Attributions [B, (T), C], also of batches that are too small for k to select anything."""
    return objective.attribute(target, components, x).scores


@functools.partial(jax.jit, static_argnums=0)
def look(
    objective: Objective, target: Target, components: Components, x: PyTree
) -> tuple[jax.Array, jax.Array, PyTree]:
    """Attributions [B, (T), C], active components of the same shape, and the target's outputs."""
    attributed = objective.attribute(target, components, x)
    chosen = objective.select(attributed.scores, x)
    return attributed.scores, chosen.mask, attributed.outputs


def see(objective: Objective, target: Target, components: Components, x: PyTree, size: int) -> Seen:
    """Compute what `Seen` holds, in blocks of about `size`, the batch size of the training.

    Batch top-k selects by comparison within a block: blocks have the size of training batches, so
    that the selection is as strict as in training.
    """
    found = []
    for block in blocks(x, size):
        scores, mask, outputs = look(objective, target, components, block)
        active = forward.masked_apply(target, components, block, mask)
        found.append(jax.device_get((scores, mask, outputs, active)))
    scores, mask, outputs, active = joined(found)
    width = scores.shape[-1]
    lead = scores.shape[:-1]
    return Seen(scores.reshape(-1, width), mask.reshape(-1, width), lead, outputs, active)


def blocks(x: PyTree, size: int) -> Iterator[PyTree]:
    """Divide examples into nearly equal blocks, none of them smaller than `size` if possible."""
    count = sites.batch_size(x)
    for rows in np.array_split(np.arange(count), max(1, count // size)):
        yield jax.tree.map(lambda leaf, rows=rows: jnp.asarray(leaf)[rows], x)


def joined(parts: list[PyTree]) -> PyTree:
    """Concatenate blocks."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def outputs_at(
    k: float, target: Target, components: Components, x: PyTree, seen: Seen, size: int
) -> tuple[np.ndarray, PyTree]:
    """Select with another k: the batch top-k mask [R, C] of given scores, and the outputs."""
    scores = seen.scores.reshape(*seen.lead, -1)
    found, start = [], 0
    for block in blocks(x, size):
        rows = slice(start, start + sites.batch_size(block))
        mask = _batch_topk(scores[rows], k)
        outputs = forward.masked_apply(target, components, block, jnp.asarray(mask))
        found.append((mask, jax.device_get(outputs)))
        start = rows.stop
    mask, outputs = joined(found)
    return mask.reshape(-1, mask.shape[-1]), outputs


def _batch_topk(scores: np.ndarray, k: float) -> np.ndarray:
    """`selection.batch_topk_mask` in NumPy: JAX would compile it again for each of many k."""
    flat = np.where(np.isfinite(scores), scores, -np.inf).ravel()
    mask = np.zeros(flat.shape, bool)
    mask[np.argsort(-flat, kind="stable")[: int(k * (flat.size // scores.shape[-1]))]] = True
    return (mask & (flat > -np.inf)).reshape(scores.shape)


def distance(objective: Objective, outputs: PyTree, target_outputs: PyTree) -> float:
    """The distance between outputs that the training minimises."""
    loss = objective.minimality_loss
    function = loss if callable(loss) else DISTANCES[loss]
    as_arrays = jax.tree.map(jnp.asarray, (outputs, target_outputs))
    return float(jnp.mean(function(*as_arrays)))
