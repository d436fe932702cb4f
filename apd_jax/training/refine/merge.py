"""Merge: components that are nearly multiples of each other become one.

Two components that each hold half of a mechanism fit the target as well as one: no gradient joins
them, but each example then activates two components.

Letters: C components.
"""

import jax
import jax.numpy as jnp

from apd_jax.components import Components
from apd_jax.training.refine import shares


def merge(
    components: Components, fixed: jax.Array, *, cosine: float
) -> tuple[Components, jax.Array, jax.Array]:
    """Add up pairs of components whose matrices, over all sites, have a cosine above `cosine`.

    Components with less than a tenth of the largest norm are left alone: the direction of a small
    component is mostly noise.

    Args:
      components: `{site: Factors}`.
      fixed: [C] bool, components that no move may touch.
      cosine: threshold above which two components are merged.

    Returns:
      The components, in which those that were added to others are zero; the number of pairs; and
      [C] bool, the components that were touched.
    """
    table = shares.gram(components)
    num_components = table.shape[0]

    def pair(table):
        norms = jnp.sqrt(jnp.maximum(jnp.diagonal(table), 0))
        # Every pair once, the upper triangle without the diagonal.
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
        components = shares.each_site(lambda f: shares.add_into(f, c, d), components)
        # Inner products are linear: the table of the merged components needs no new products.
        table = table.at[c].add(table[d])
        table = table.at[:, c].add(table[:, d])
        table = table.at[d].set(0).at[:, d].set(0)
        return components, table, count + 1, touched.at[c].set(True).at[d].set(True)

    start = components, table, jnp.int32(0), jnp.zeros(num_components, bool)
    components, _, count, touched = jax.lax.while_loop(more, add, start)
    return components, count, touched
