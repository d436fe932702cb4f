"""Bases for Adam: eigenvectors of the gradients of every matrix, on both of its sides.

Adam scales every coordinate of a gradient by itself. That works best where coordinates vary
independently, which those of a residual stream do not: it varies far more in some directions than
in others. All components of a site read the same rows and get gradients of the same outputs, so
that two orthogonal matrices for every site rotate their factors into coordinates that are not
correlated. Shampoo and SOAP (Vyas et al. 2024, arXiv:2409.11321) estimate them from the gradients
of a training; here the target is fixed, so that they are computed once.

Letters: B batch, G stacked blocks, n directions, m rank, d a site's width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from apd_jax import blocks, validity
from apd_jax.attribution import metrics
from apd_jax.components import Components, Factors
from apd_jax.objective.objective import Objective
from apd_jax.programs import linalg
from apd_jax.sites import PyTree, Target

WIDEST = 2048  # side of a matrix; a wider one stays as it is, since d² numbers would be kept
_PROBES = 4


class Basis(NamedTuple):
    """Orthogonal matrices of a site; None for a side that stays as it is.

    Attributes:
      reads: [(G), d_in, d_in], in its columns the eigenvectors of `Σ ∂W ∂Wᵀ`.
      writes: [(G), d_out, d_out], in its columns the eigenvectors of `Σ ∂Wᵀ ∂W`.
    """

    reads: jax.Array | None
    writes: jax.Array | None

    @property
    def inverse(self) -> "Basis":
        """The basis that rotates back."""
        return Basis(*(None if side is None else jnp.swapaxes(side, -1, -2) for side in self))


def _times(rows: jax.Array, matrix: jax.Array | None) -> jax.Array:
    """Rows [C, (G), m, d] times a matrix [(G), d, d]."""
    return rows if matrix is None else jnp.matmul(rows, matrix, precision="highest")


def rotated(components: Components, bases: dict[str, Basis]) -> Components:
    """The coordinates of all factors in the bases of their sites; gates, say, stay as they are."""
    copied = jax.tree.map(lambda leaf: leaf, components)
    for site, basis in bases.items():
        copied[site] = Factors(*map(_times, components[site], basis))
    return copied


def rotated_back(coordinates: Components, bases: dict[str, Basis]) -> Components:
    """The inverse of `rotated`."""
    return rotated(coordinates, {site: basis.inverse for site, basis in bases.items()})


def find(
    objective: Objective, target: Target, x: PyTree, key: jax.Array, block_size: int | None
) -> dict[str, Basis]:
    """Find the bases of all sites.

    Blocks of inputs and directions v of the objective's metric, drawn at random, give gradients
    `∂W = ∂(v · f(x; θ)) / ∂W` of every decomposed matrix.

    Args:
      objective: the metric, and what counts of the inputs.
      target: the network.
      x: [B, ...] inputs.
      key: PRNG key of the directions.
      block_size: number of inputs whose gradient is taken together; None for all.
    """

    def of_part(part):
        valid = objective.counted(part)

        def measured(weights):
            outputs = target.with_weights(weights)(part)
            return metrics.quantities(objective.metric, outputs, valid=valid)

        outputs = validity.keep(valid, target(part))
        probes = metrics.probes(objective.metric, key, outputs, _PROBES)
        _, pull_back = jax.vjp(measured, target.weights)
        (gradients,) = jax.lax.map(pull_back, probes)
        return {site: _moments(each) for site, each in gradients.items()}

    moments = blocks.total(of_part, x, block_size)
    return {
        site: Basis(*(None if each is None else linalg.eigh(each)[1] for each in pair))
        for site, pair in moments.items()
    }


def _moments(gradients: jax.Array) -> tuple[jax.Array | None, jax.Array | None]:
    """`Σ ∂W ∂Wᵀ` and `Σ ∂Wᵀ ∂W` of gradients [n, (G), d_in, d_out]; None for a wide side."""
    each = gradients.astype(jnp.float32)
    reads = writes = None
    if each.shape[-2] <= WIDEST:
        reads = jnp.einsum("n...io,n...jo->...ij", each, each, precision="highest")
    if each.shape[-1] <= WIDEST:
        writes = jnp.einsum("n...io,n...ip->...op", each, each, precision="highest")
    return reads, writes
