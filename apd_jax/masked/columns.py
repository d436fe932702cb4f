"""The columns of a matrix as terms of rank one, without the identity matrix that they write by.

Column j of block g is term `g·d_out + j`: it reads `W[g, :, j]` and writes entry j.
Letters: B batch, T positions, G stacked blocks, q = G·d_out terms, n directions of the outputs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from apd_jax.components import Factors
from apd_jax.masked import forward
from apd_jax.sites import Patches, Placement, SiteCall, SiteRecord


def alone_in_blocks(reads: jax.Array, writes: jax.Array) -> Factors:
    """Terms [(G,) q, d] as factors [G·q, (G,) 1, d] of rank one, zeros in all other blocks."""
    if reads.ndim == 2:
        return Factors(reads[:, None], writes[:, None])
    own = jnp.eye(len(reads))[:, None, :, None, None]  # [G, 1, G, 1, 1]
    spread = (own * side[:, :, None, None] for side in (reads, writes))
    return Factors(*(side.reshape(-1, *side.shape[2:]) for side in spread))


class Columns(NamedTuple):
    """The columns of a site's matrix.

    Attributes:
      matrix: [(G,) d_in, d_out].
    """

    matrix: jax.Array

    @property
    def num_components(self) -> int:
        """The number of terms, q."""
        return self.matrix.shape[-1] * (len(self.matrix) if self.matrix.ndim == 3 else 1)

    def factors(self) -> Factors:
        """The terms as factors, [q, (G,) 1, d]: for small sites."""
        reads = jnp.swapaxes(self.matrix, -1, -2)
        return alone_in_blocks(
            reads, jnp.broadcast_to(jnp.eye(reads.shape[-2]), (*reads.shape[:-1], reads.shape[-2]))
        )

    def masked(self, call: SiteCall, weights: jax.Array) -> jax.Array:
        """`x W diag(m)`, or `x diag(m) Wᵀ` where a use transposes the matrix.

        Args:
          call: the use of the site.
          weights: m, [B, (T), q].
        """
        between = (1,) * (call.x.ndim - weights.ndim - (self.matrix.ndim == 3))
        if forward.is_look_up(call.x):  # rows of a look-up have no width
            between = (1,) * (call.x.ndim + 1 - weights.ndim)
        own = weights.reshape(*weights.shape[:-1], *between, *self._block_shape)
        places = self._places(call.placement)
        own = own if places is None else own[(..., *places)]
        if not call.placement.transposed:
            y = call.as_is()
            return y * own.astype(y.dtype)
        rows = self._rows(call.x, call.placement)
        return forward.times(rows * own.astype(rows.dtype), self._matrix(call.placement))

    def along(self, gradient: jax.Array, record: SiteRecord, lead: int) -> jax.Array:
        """Derivative along every term at one use.

        Args:
          gradient: [n, B, (T), ..., (G), d] gradients at its output rows.
          record: the use's rows.
          lead: number of leading axes of rows: 1 for B, and the axes of T if positions are wanted.

        Returns:
          [n, L, q], L the product of the leading axes.
        """
        placement = record.placement
        matrix = self._matrix(placement)
        if placement.transposed:
            back = forward.times(gradient.astype(jnp.float32), jnp.swapaxes(matrix, -1, -2))
            each = back * self._rows(record.x, placement)
        else:
            each = gradient * forward.times(record.x, matrix)
        blocks = self.matrix.ndim - 2
        inner = tuple(range(1 + lead, each.ndim - 1 - blocks))
        each = each.astype(jnp.float32).sum(axis=inner)  # [n, B, (T), (G), d]
        each = each.reshape(len(each), -1, *each.shape[1 + lead :])
        places = self._places(placement)
        if places is not None:
            whole = jnp.zeros((*each.shape[:2], *self._block_shape))
            each = whole.at[(..., *places)].add(each)
        return each.reshape(*each.shape[:2], -1)

    @property
    def _block_shape(self) -> tuple[int, ...]:
        return (*self.matrix.shape[:-2], self.matrix.shape[-1])

    def _places(self, placement: Placement) -> tuple[jax.Array, ...] | None:
        """Places of a use's columns among all, as indices of axes [(G,) d_out]; None for all."""
        columns = placement.rows if placement.transposed else placement.columns
        if columns is None and placement.blocks is None:
            return None
        numbers = jnp.arange(self.matrix.shape[-1]) if columns is None else jnp.array(columns)
        if self.matrix.ndim == 2:
            return (numbers,)
        blocks = jnp.arange(len(self.matrix))
        blocks = blocks if placement.blocks is None else jnp.array(placement.blocks)
        return blocks[:, None], numbers

    def _matrix(self, placement: Placement) -> jax.Array:
        """The matrix that a use multiplies by, [(G,) d, d']."""
        matrix = jnp.swapaxes(self.matrix, -1, -2) if placement.transposed else self.matrix
        if placement.blocks is not None:
            matrix = matrix[jnp.array(placement.blocks)]
        if placement.rows is not None:
            matrix = matrix[..., jnp.array(placement.rows), :]
        if placement.columns is not None:
            matrix = matrix[..., jnp.array(placement.columns)]
        return matrix

    def _rows(self, x: jax.Array | Patches, placement: Placement) -> jax.Array:
        """Rows that a use reads; those of a look-up as one-hot rows."""
        if isinstance(x, Patches):
            return x.formed()
        if not forward.is_look_up(x):
            return x
        return jax.nn.one_hot(x, self._matrix(placement).shape[-2])
