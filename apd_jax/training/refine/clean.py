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


def fold(components: Components, activity: Activity, free: jax.Array) -> Components:
    """Distribute every site's remainder, the sum over free components, among those that read it.

    Args:
      components: `{site: Factors}`.
      activity: what the components do on a batch.
      free: [C] bool, the free components.

    Returns:
      The components; free ones keep what no other component reads.
    """
    weights = jnp.where(free, 0.0, activity.weights)
    # Per component: a frequent component must not take what a rare one reads, only because its
    # rows are more.
    weights = weights / jnp.maximum(jnp.sum(weights, axis=0), 1e-30)
    (second,) = activity.moments(jnp.sum(weights, axis=1))
    remainders = shares.each_site(lambda f: _remainder(f, free), components)

    def one(c):
        (moments,) = activity.moments(weights[:, c])
        of_c = functools.partial(_with_its_part, c)
        return shares.alike(of_c, components, remainders, second, moments)

    # The network is run once for several components, whose moments are held together.
    together = max(1, _MOST_NUMBERS // sum(leaf.size for leaf in second.values()))
    folded = jax.lax.map(one, jnp.arange(len(free)), batch_size=together)

    def kept(factors, second):
        left = factors.reads - shares.partition(second)(second, factors.reads)
        return factors._replace(reads=left)

    return {
        site: shares.select(spread(free, factors.reads.ndim), factors, folded[site])
        for site, factors in shares.each_site(kept, components, second).items()
    }


def _with_its_part(
    c: jax.Array, factors: Factors, remainder: Factors, second: jax.Array, moment: jax.Array
) -> Factors:
    """Component c of a site, with the part of the remainder that it reads."""

    def of_block(own, rest, second, moment):
        taken = shares.partition(second)(moment, rest.reads)
        both = jnp.concatenate([own.reads, taken])
        return shares.compress(both, jnp.concatenate([own.writes, rest.writes]), len(own.reads))

    own = jax.tree.map(lambda leaf: leaf[c], factors)
    mapped = jax.vmap(of_block, in_axes=(0, 1, 0, 0)) if factors.stacked else of_block
    return mapped(own, remainder, second, moment)


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
    # A loop, so that the loss is compiled once and not for every site. What a site's fold is does
    # not depend on other sites. The first turn measures the loss before.
    folded = fold(components, activity, free)

    def attempt(turn, carry):
        components, before, count = carry
        candidate = {
            site: shares.select(turn == number, folded[site], factors)
            for number, (site, factors) in enumerate(components.items(), 1)
        }
        after = loss(candidate)
        good = (turn > 0) & (after < _PAYS * before) & jnp.any(free)
        components = shares.select(good, candidate, components)
        return components, jnp.where(good | (turn == 0), after, before), count + good

    start = components, jnp.full((), jnp.inf), jnp.int32(0)
    components, _, count = jax.lax.fori_loop(0, 1 + len(components), attempt, start)
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
