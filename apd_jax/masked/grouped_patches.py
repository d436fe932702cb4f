"""Multiply the patches of each image by the factors of the components that are active on it.

Letters: B batch, P pairs, G groups, r and d the two widths of a factor; see `grouped_matmul`.
"""

import jax

from apd_jax.masked.grouped_matmul import Groups, of_pairs
from apd_jax.sites import Patches


def read(x: Patches, factor: jax.Array, groups: Groups) -> jax.Array:
    """`x_p · factor[g_p]ᵀ` of every pair, for the rows of a convolution, group by group.

    Args:
      x: [B, ..., d] rows of all examples.
      factor, groups: see `grouped_matmul.read`.

    Returns:
      [P, ..., r], or [P, ..., blocks, r].
    """

    @jax.checkpoint  # else the images of all slots would be kept for the gradient
    def one(group):
        pairs, reads = group
        return x[groups.example[pairs]].read(reads[None])[..., 0, :]

    return of_pairs(
        groups,
        factor,
        lambda slots, factor: jax.lax.map(one, (slots.pair, factor)),
        lambda table, block, slot: table[block, slot],
    )
