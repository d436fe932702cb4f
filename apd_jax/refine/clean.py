"""Clean: what free components still hold goes back to the components that read it.

Letters: R rows of the mask, C components.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from apd_jax.components import Factors
from apd_jax.refine import shares
from apd_jax.refine.evidence import Evidence
from apd_jax.refine.shares import Parts

_PAYS = 0.999  # of the loss; rounding alone does not


def fold(factors: Factors, rows: jax.Array, weights: jax.Array, free: jax.Array) -> Factors:
    """Share a site's remainder, the sum over free components, among those that read it.

    Args:
      factors: of the site.
      rows: [R, n, d_in], what it reads.
      weights: [R, C], what each component does for each example.
      free: [C] bool.

    Returns:
      The factors; those of free components hold what nobody reads.
    """
    num_components, rank = factors.reads.shape[:2]
    weights = jnp.where(free, 0.0, weights)
    weights = weights / jnp.maximum(jnp.sum(weights, axis=0), 1e-30)
    part = shares.sharing(rows, jnp.sum(weights, axis=1))
    kept = free[:, None, None]
    flat_reads = jnp.where(kept, factors.reads, 0).reshape(-1, factors.reads.shape[-1])
    flat_writes = jnp.where(kept, factors.writes, 0).reshape(-1, factors.writes.shape[-1])
    remainder = shares.compress(
        flat_reads, flat_writes, min(flat_reads.shape[1], flat_writes.shape[1])
    )

    def one(c):
        taken = part(weights[:, c], remainder.reads)
        both = jnp.concatenate([factors.reads[c], taken])
        writes = jnp.concatenate([factors.writes[c], remainder.writes])
        return shares.compress(both, writes, rank)

    folded = jax.lax.map(one, jnp.arange(num_components))
    left = part(jnp.sum(weights, axis=1), factors.reads)
    return Factors(
        jnp.where(kept, factors.reads - left, folded.reads),
        jnp.where(kept, factors.writes, folded.writes),
    )


def clean(
    components: Parts,
    evidence: Evidence,
    free: jax.Array,
    loss: Callable[[Parts], jax.Array],
) -> tuple[Parts, jax.Array, jax.Array]:
    """Fold the remainder of every site where the loss falls by it.

    Returns:
      The components, at how many sites, and [C] bool, which were touched.
    """
    before, count = loss(components), jnp.int32(0)
    for site, factors in components.items():
        folded = fold(factors, evidence.rows[site], evidence.weights, free)
        candidate = components | {site: folded}
        after = loss(candidate)
        good = (after < _PAYS * before) & jnp.any(free)
        components = shares.select(good, candidate, components)
        before, count = jnp.where(good, after, before), count + good
    return components, count, jnp.broadcast_to(count > 0, free.shape)
