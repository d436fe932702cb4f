"""Matrix decompositions, on CPUs one matrix at a time.

jaxlib 0.10 computes a batch of decompositions on the threads that also run the program, and its
call waits for them. As many calls at once as there are threads, on two cores two, can wait for each
other forever. A single matrix is decomposed by the thread that asks for it. On CPUs, batches, with
leading axes or under `vmap`, are therefore loops here. The numbers are the same.

All functions take matrices [..., n, m] with equal leading axes. There are no gradients.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def _one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """Apply a function of matrices to batches of them, matrix by matrix where this is a CPU."""
    single = jax.custom_batching.sequential_vmap(function)

    @functools.wraps(function)
    def apply(*matrices: jax.Array) -> Any:
        one = single if jax.default_backend() == "cpu" else function
        for _ in range(matrices[0].ndim - 2):
            one = jax.vmap(one)
        return one(*matrices)

    return apply


@_one_at_a_time
def svd(matrices: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Singular value decomposition, `u [..., n, q], s [..., q], vᵀ [..., q, m]`, q = min(n, m)."""
    u, s, vt = jnp.linalg.svd(matrices, full_matrices=False)
    return u, s, vt


@_one_at_a_time
def qr(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """QR decomposition, `Q [..., n, q], R [..., q, m]`, q = min(n, m)."""
    q, r = jnp.linalg.qr(matrices)
    return q, r


@_one_at_a_time
def eigh(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues [..., n] of symmetric matrices, ascending, and eigenvectors [..., n, n]."""
    values, vectors = jnp.linalg.eigh(matrices)
    return values, vectors


@_one_at_a_time
def cholesky(matrices: jax.Array) -> jax.Array:
    """The lower triangular L of positive definite matrices `L Lᵀ`."""
    return jnp.linalg.cholesky(matrices)


@_one_at_a_time
def solve(matrices: jax.Array, right: jax.Array) -> jax.Array:
    """`A⁻¹ B`."""
    return jnp.linalg.solve(matrices, right)


@_one_at_a_time
def solve_lower(lower: jax.Array, right: jax.Array) -> jax.Array:
    """`L⁻¹ B` for lower triangular matrices."""
    return jax.scipy.linalg.solve_triangular(lower, right, lower=True)


@_one_at_a_time
def solve_factored(lower: jax.Array, right: jax.Array) -> jax.Array:
    """`(L Lᵀ)⁻¹ B` for the factor L of `cholesky`."""
    return jax.scipy.linalg.cho_solve((lower, True), right)
