"""Clean and share: reassign what free components still hold.

Free components are active on almost no example, but what they hold is part of the sum. `clean`
returns it to the components that read it, if the loss falls. `share` spreads the rest evenly over
all free components.

Letters: R rows of the mask, C components, m rank.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from apd_jax.components import Components, Factors
from apd_jax.programs.axes import spread
from apd_jax.training.refine import shares
from apd_jax.training.refine.activity import Activity

_MOST_NUMBERS = 2**22  # of second moments that are held together
_PAYS = 0.999  # of the loss before: a smaller fall could be rounding


def _remainder(factors: Factors, free: jax.Array) -> Factors:
    """The sum of the free components as factors [n, d], with n the smaller width of the site."""
    kept = free[:, None, None]
    flat_reads = jnp.where(kept, factors.reads, 0).reshape(-1, factors.reads.shape[-1])
    flat_writes = jnp.where(kept, factors.writes, 0).reshape(-1, factors.writes.shape[-1])
    return shares.compress(flat_reads, flat_writes, min(flat_reads.shape[1], flat_writes.shape[1]))


def fold(
    factors: Factors,
    moments: Callable[[jax.Array], jax.Array],
    weights: jax.Array,
    free: jax.Array,
) -> Factors:
    """Distribute a site's remainder, the sum over free components, among those that read it.

    Args:
      factors: factors of the site.
      moments: `Activity.moments` of the site.
      weights: [R, C], how much each component does for each row.
      free: [C] bool, the free components.

    Returns:
      The factors; those of free components keep what no other component reads.
    """
    rank = factors.reads.shape[-2]
    weights = jnp.where(free, 0.0, weights)
    # Per component: a frequent component must not take what a rare one reads, only because its
    # rows are more.
    weights = weights / jnp.maximum(jnp.sum(weights, axis=0), 1e-30)
    second = moments(jnp.sum(weights, axis=1))
    remainder = shares.by_block(lambda f: _remainder(f, free), factors)

    def one(c):
        def of_block(own, rest, second, moment):
            taken = shares.partition(second)(moment, rest.reads)
            both = jnp.concatenate([own.reads, taken])
            return shares.compress(both, jnp.concatenate([own.writes, rest.writes]), rank)

        own = jax.tree.map(lambda leaf: leaf[c], factors)
        mapped = jax.vmap(of_block, in_axes=(0, 1, 0, 0)) if factors.stacked else of_block
        return mapped(own, remainder, second, moments(weights[:, c]))

    # The network is run once for several components, whose moments are held together.
    together = max(1, _MOST_NUMBERS // second.size)
    folded = jax.lax.map(one, jnp.arange(len(free)), batch_size=together)
    left = shares.by_block(lambda f, s: shares.partition(s)(s, f.reads), factors, second)
    kept = spread(free, factors.reads.ndim)
    return Factors(
        jnp.where(kept, factors.reads - left, folded.reads),
        jnp.where(kept, factors.writes, folded.writes),
    )


def clean(
    components: Components,
    activity: Activity,
    free: jax.Array,
    loss: Callable[[Components], jax.Array],
) -> tuple[Components, jax.Array, jax.Array]:
    """Fold the remainder of every site at which that lowers the loss.

    Sites are tried one after another, each from the result of those before: a remainder that helps
    alone may do harm together with another.

    Args:
      components: `{site: Factors}`.
      activity: what the components do on a batch.
      free: [C] bool, the free components.
      loss: loss of components on the same batch.

    Returns:
      The components, the number of sites folded, and [C] bool, the components that were touched.
    """
    before, count = loss(components), jnp.int32(0)
    for site, factors in components.items():
        moments = functools.partial(activity.moments, site)
        folded = fold(factors, moments, activity.weights, free)
        candidate = components | {site: folded}
        after = loss(candidate)
        good = (after < _PAYS * before) & jnp.any(free)
        components = shares.select(good, candidate, components)
        before, count = jnp.where(good, after, before), count + good
    return components, count, jnp.broadcast_to(count > 0, free.shape)


def share(components: Components, free: jax.Array) -> Components:
    """Spread what the free components hold together evenly over all of them.

    With more mechanisms than a site reads dimensions, the mechanisms' components add up to more
    than the target, and free components must hold the difference, which no example needs. In a few
    large pieces it would disturb every example on which one of them is selected; in many small
    pieces it hardly matters. At each site the singular directions of the sum are dealt out in turn
    to the terms of the free components, each in as many equal pieces as there are terms for it.
    """
    return shares.each_site(lambda f: _shared(f, free), components)


def _shared(factors: Factors, free: jax.Array) -> Factors:
    rank = factors.reads.shape[1]
    remainder = _remainder(factors, free)
    size = len(remainder.reads)
    terms = (jnp.cumsum(free) - 1)[:, None] * rank + jnp.arange(rank)
    direction = jnp.where(free[:, None], terms, 0) % size
    pieces = jnp.maximum((jnp.sum(free) * rank - direction + size - 1) // size, 1)
    root = 1 / jnp.sqrt(pieces)[..., None]
    kept = free[:, None, None]
    return Factors(
        jnp.where(kept, root * remainder.reads[direction], factors.reads),
        jnp.where(kept, root * remainder.writes[direction], factors.writes),
    )
