"""Numbers in at least float32, so that what is summed of half-precision outputs is not rounded."""

import jax
import jax.numpy as jnp


def widened(array: jax.Array) -> jax.Array:
    """A real array in float32; an array of float32 or float64 as it is.

    In bfloat16 the logarithms of a KL divergence are rounded by more than the divergence, and in
    float16 squares above 65504 are infinite and those of 1e-4 are zero.
    """
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
