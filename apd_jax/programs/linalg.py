"""Matrix decompositions, on CPUs one matrix at a time.

jaxlib 0.10 computes a batch of decompositions on the threads that also run the program, and its
call waits for them. As many calls at once as there are threads, on two cores two, can wait for each
other forever. A single matrix is decomposed by the thread that asks for it. On CPUs, batches, with
leading axes or under `vmap`, are therefore loops here. The numbers are the same.

All functions take matrices [..., n, m] with equal leading axes. There are no gradients.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def _one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """Apply a function of matrices to batches of them, matrix by matrix where this is a CPU."""
    single = jax.custom_batching.sequential_vmap(function)

    def apply(*matrices: jax.Array) -> Any:
        one = single if jax.default_backend() == "cpu" else function
        for _ in range(matrices[0].ndim - 2):
            one = jax.vmap(one)
        return one(*matrices)

    return apply


_svd = _one_at_a_time(lambda matrix: tuple(jnp.linalg.svd(matrix, full_matrices=False)))
_qr = _one_at_a_time(lambda matrix: tuple(jnp.linalg.qr(matrix)))
_eigh = _one_at_a_time(lambda matrix: tuple(jnp.linalg.eigh(matrix)))
_cholesky = _one_at_a_time(jnp.linalg.cholesky)
_solve = _one_at_a_time(jnp.linalg.solve)
_solve_lower = _one_at_a_time(
    lambda lower, right: jax.scipy.linalg.solve_triangular(lower, right, lower=True)
)
_solve_factored = _one_at_a_time(
    lambda lower, right: jax.scipy.linalg.cho_solve((lower, True), right)
)


def svd(matrices: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Singular value decomposition, `u [..., n, q], s [..., q], vᵀ [..., q, m]`, q = min(n, m)."""
    return _svd(matrices)


def qr(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """QR decomposition, `Q [..., n, q], R [..., q, m]`, q = min(n, m)."""
    return _qr(matrices)


def eigh(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues [..., n] of symmetric matrices, ascending, and eigenvectors [..., n, n]."""
    return _eigh(matrices)


def cholesky(matrices: jax.Array) -> jax.Array:
    """The lower triangular L of positive matrices `L Lᵀ`."""
    return _cholesky(matrices)


def solve(matrices: jax.Array, right: jax.Array) -> jax.Array:
    """`A⁻¹ B`."""
    return _solve(matrices, right)


def solve_lower(lower: jax.Array, right: jax.Array) -> jax.Array:
    """`L⁻¹ B` for lower triangular matrices."""
    return _solve_lower(lower, right)


def solve_factored(lower: jax.Array, right: jax.Array) -> jax.Array:
    """`(L Lᵀ)⁻¹ B` for the factor L of `cholesky`."""
    return _solve_factored(lower, right)
