"""The part of every matrix that reads its mean input: what a network computes on every input alike.

Letters: B batch, T positions, G stacked blocks, q singular values, m rank.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from apd_jax import blocks, sites, validity
from apd_jax.components import Factors
from apd_jax.masked import forward
from apd_jax.objective.objective import Objective
from apd_jax.programs import linalg
from apd_jax.programs.axes import spread
from apd_jax.sites import Patches, PyTree, SiteRecord, Target

_LEAST_SHARE = 0.02  # of the mean in the inputs' second moment; below, it may be noise


class MeanInput(NamedTuple):
    """The mean input row of a site.

    Attributes:
      direction: [(G), d_in], of unit length; zeros where the mean is zero.
      counts: bool [(G)], whether the mean is more than noise: `‖E x‖² ≥ 0.02 · E ‖x‖²`.
    """

    direction: jax.Array
    counts: jax.Array


def mean_inputs(
    objective: Objective, target: Target, x: PyTree, block_size: int | None
) -> dict[str, MeanInput]:
    """The mean inputs of sites, over the uses that read dense rows by the whole matrix.

    Sites that are looked up, that read patches of an image, or are only used in part or transposed
    have none.

    Args:
      objective: what counts of the inputs, and whether positions are told apart.
      target: the network.
      x: [B, ...] inputs.
      block_size: number of inputs that are evaluated together; None for all.
    """
    positions = objective.per_position

    def sums(inputs, valid):
        lead = (
            sites.batch_size(inputs),
            *(sites.position_shape(target, inputs) if positions else ()),
        )
        here = jnp.ones(lead, bool) if valid is None else validity.of_rows(valid, lead)
        _, records = sites.run(target, inputs, sites.as_is, positions=positions)
        return {key: _sums(record, here) for key, record in records.items() if _is_dense(record)}

    def of_part(part):
        each = sites.over_examples(sums, target, part, objective.counted(part))
        return jax.tree.map(lambda leaf: leaf.sum(axis=0), each)

    totals: dict[str, tuple] = {}
    for (site, _), found in blocks.total(of_part, x, block_size).items():  # a site can have uses
        before = totals.get(site)
        totals[site] = found if before is None else jax.tree.map(jnp.add, before, found)
    return {site: _mean(*found) for site, found in totals.items()}


def _is_dense(record: SiteRecord) -> bool:
    """Whether a use reads dense rows by its site's whole matrix, not by a part or transposed."""
    use = record.placement
    whole = not use.transposed and use.rows is use.columns is use.blocks is None
    return whole and not isinstance(record.x, Patches) and not forward.is_look_up(record.x)


def _sums(record: SiteRecord, here: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums of an example's rows [B, (G), d], of their squares [B, (G)], and their number [B]."""
    assert not isinstance(record.x, Patches)
    inner = record.x.ndim - (2 if record.placement.stacked else 1)
    counts = jnp.broadcast_to(spread(here, inner), record.x.shape[:inner])
    rows = record.x.astype(jnp.float32)
    rows = jnp.where(spread(counts, rows.ndim), rows, 0.0)
    axes = tuple(range(1, inner))
    return rows.sum(axes), jnp.square(rows).sum((*axes, -1)), counts.sum(axes)


def _mean(total: jax.Array, squares: jax.Array, number: jax.Array) -> MeanInput:
    """The mean of rows by their sum [(G), d], the sum of their squares [(G)] and their number."""
    norm = jnp.linalg.norm(total, axis=-1)
    direction = total / jnp.maximum(norm, 1e-30)[..., None]
    return MeanInput(direction, jnp.square(norm) > _LEAST_SHARE * squares * number)


def terms(weight: jax.Array, most: int, mean: MeanInput) -> Factors:
    """Split a matrix into the part that reads its mean input, and singular terms of the rest.

    With q the mean's direction, `W = q (qᵀ W) + (1 − q qᵀ) W`: the first term gives what the matrix
    writes for the mean, and the rest reads deviations from it. Where the mean does not count, the
    first term is that of the largest singular value, and all are those of W.

    Args:
      weight: [(G), d_in, d_out].
      most: the largest number of terms of a block.
      mean: the mean input.

    Returns:
      Factors [(G), m, d] of the terms, the first that of the mean, the others in the order of their
      size. They add up to the matrix if `most` allows for its rank and one more, or for d_in.
    """
    u = linalg.svd(weight)[0]
    direction = jnp.where(mean.counts[..., None], mean.direction, u[..., 0])
    write = jnp.einsum("...i,...io->...o", direction, weight)
    rest = weight - direction[..., :, None] * write[..., None, :]
    u, s, vt = linalg.svd(rest)
    others = Factors.from_svd(u, s, vt, min(most - 1, s.shape[-1], weight.shape[-2] - 1))
    size = jnp.linalg.norm(write, axis=-1)[..., None]
    root = jnp.sqrt(size)
    first = direction * root, write / jnp.maximum(root, 1e-30)
    sides = zip(first, others, strict=True)
    return Factors(*(jnp.concatenate([one[..., None, :], rest], axis=-2) for one, rest in sides))
