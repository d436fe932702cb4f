"""Merge: components that are multiples of one another become one.

Letters: C components.
"""

import jax
import jax.numpy as jnp

from apd_jax.training.refine import shares
from apd_jax.training.refine.shares import Parts


def merge(
    components: Parts, fixed: jax.Array, *, cosine: float
) -> tuple[Parts, jax.Array, jax.Array]:
    """Add up pairs of components whose matrices, over all sites, have a cosine above `cosine`.

    Only components with at least a tenth of the largest norm count.

    Args:
      components: `{part: Factors}`, blocks of stacked sites apart.
      fixed: [C] bool, components that no move may touch.
      cosine: from where on two are one.

    Returns:
      The components, those that were added to others at zero; how many pairs; and [C] bool, which
      were touched.
    """
    table = shares.gram(components)
    num_components = table.shape[0]

    def pair(table):
        norms = jnp.sqrt(jnp.maximum(jnp.diagonal(table), 0))
        counts = (norms >= 0.1 * jnp.max(norms)) & ~fixed
        allowed = counts[:, None] & counts & jnp.triu(jnp.ones(table.shape, bool), 1)
        cosines = table / jnp.maximum(norms[:, None] * norms, 1e-30)
        cosines = jnp.where(allowed, cosines, -1)
        flat = jnp.argmax(cosines)
        return flat // num_components, flat % num_components, jnp.max(cosines)

    def more(carry):
        _, table, _, _ = carry
        return pair(table)[2] > cosine

    def add(carry):
        components, table, count, touched = carry
        c, d, _ = pair(table)
        components = {s: shares.add_into(f, c, d) for s, f in components.items()}
        table = table.at[c].add(table[d])
        table = table.at[:, c].add(table[:, d])
        table = table.at[d].set(0).at[:, d].set(0)
        return components, table, count + 1, touched.at[c].set(True).at[d].set(True)

    start = components, table, jnp.int32(0), jnp.zeros(num_components, bool)
    components, _, count, touched = jax.lax.while_loop(more, add, start)
    return components, count, touched
