"""Sums of rank-one terms as one matrix product, with gradients in the layout of the factors."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def sum_terms(reads: jax.Array, writes: jax.Array) -> jax.Array:
    """`readsᵀ writes` of [n, d_in] and [n, d_out], transposing only the smaller one in memory.

    The gradient is spelled out so that its products, too, come out in the layout of the factors.
    Derived automatically, they come out transposed, and the compiler adds a copy of the large ones.
    """
    if reads.shape[1] <= writes.shape[1]:
        return jnp.einsum("ni,no->io", reads, writes)
    return jnp.einsum("no,ni->oi", writes, reads).T


def _sum_terms_forward(reads, writes):
    return sum_terms(reads, writes), (reads, writes)


def _sum_terms_backward(saved, gradient):
    reads, writes = saved
    return jnp.einsum("no,io->ni", writes, gradient), jnp.einsum("ni,io->no", reads, gradient)


sum_terms.defvjp(_sum_terms_forward, _sum_terms_backward)
