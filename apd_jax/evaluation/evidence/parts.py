"""A network run with weighted parts in place of its matrices.

Parts are the components themselves, or terms of rank one that belong to one site each, as singular
vectors do: these need no zeros for the other sites. Several terms may share a weight (a bundle).
Letters: B batch, T positions, C weights of a row, q terms of a site.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from apd_jax import sites
from apd_jax.attribution.terms import Terms
from apd_jax.components import Components, Factors
from apd_jax.masked import forward
from apd_jax.masked.columns import Columns
from apd_jax.sites import PyTree, SiteCall, Target

# Of a pass: with fewer, the pass takes milliseconds, and compiling it by active pairs seconds.
_FEW_PRODUCTS = 100_000_000


class Parts(NamedTuple):
    """Terms of every site, and which weight each of them has.

    Attributes:
      terms: `{site: Factors}` with q terms each, or the columns of every matrix.
      owner: `{site: [q] int32}`, the column of the mask that scales a term; None where terms are
        components, which all sites share.
    """

    terms: Terms
    owner: dict[str, jax.Array] | None = None

    def operation(self, mask: jax.Array) -> sites.Operation:
        """The masked operation of a mask [B, (T), C] of weights."""

        def run(call: SiteCall) -> jax.Array:
            name = call.key[0]
            weights = mask
            if self.owner is not None:
                weights = jnp.take(mask, self.owner[name], axis=-1)
            terms = self.terms[name]
            if isinstance(terms, Columns):
                return terms.masked(call, weights)
            return forward.masked({name: terms}, weights)(call)

        return run


def run(target: Target, parts: Parts, x: PyTree, mask: jax.Array) -> PyTree:
    """Outputs with the parts scaled by a mask [B, C] or [B, T, C], T of one axis or several."""

    def some(inputs, rows):
        return sites.run(target, inputs, parts.operation(rows), positions=mask.ndim > 2)[0]

    return sites.over_examples(some, target, x, mask)


@jax.jit
@jax.default_matmul_precision("highest")
def mixture(components: Components, r: jax.Array) -> dict[str, jax.Array]:
    """`Σ_c r_c P_c` at every site, for r [C]."""
    return {site: _scaled(factors, r).sum() for site, factors in components.items()}


def run_shared(
    target: Target,
    components: Components,
    x: PyTree,
    mask: jax.Array,
    mixed: dict[str, jax.Array],
    missing: jax.Array,
    most: int,
) -> PyTree:
    """Outputs with the inactive components scaled by one r [C] for all rows.

    `Σ_c (s_c + (1 − s_c) r_c) P_c = Σ_c r_c P_c + Σ_c s_c (1 − r_c) P_c`: the first sum is one
    matrix a site, and of the second only the active pairs are computed where these are few.

    Args:
      target: the network.
      components: `{site: Factors}`.
      x: [B, ...] inputs.
      mask: [B, (T), C] bool, active components.
      mixed: `mixture(components, r)`, which serves all blocks.
      missing: [C], 1 − r.
      most: no fewer than the active pairs of the mask.
    """
    base = target.with_weights(mixed)
    rest = {site: _scaled(factors, missing) for site, factors in components.items()}
    lead, positions = mask.shape[:-1], mask.ndim > 2
    if _by_pairs(components, mask, most) and sites.batched(target, x):
        return _with_added(base, x, _active_pairs(rest, mask, most, lead), positions)

    def some(inputs, rows):
        return _with_added(base, inputs, forward.masked(rest, rows), positions)

    return sites.over_examples(some, target, x, mask)


def _by_pairs(components: Components, mask: jax.Array, most: int) -> bool:
    """Whether computing the active pairs alone saves more time than its compilation takes."""
    products = sum(f.reads.size + f.writes.size for f in components.values()) * mask[..., 0].size
    route = forward.choose_masked_route(most, mask[..., 0].size, components)
    return products > _FEW_PRODUCTS and route == "grouped"


def _with_added(target: Target, x: PyTree, added: sites.Operation, positions: bool) -> PyTree:
    def operation(call: SiteCall) -> jax.Array:
        y = call.as_is()
        return y + added(call).astype(y.dtype)

    return sites.run(target, x, operation, positions=positions)[0]


def _scaled(factors: Factors, weights: jax.Array) -> Factors:
    shape = (-1,) + (1,) * (factors.writes.ndim - 1)
    return factors._replace(writes=factors.writes * weights.reshape(shape))


def _active_pairs(
    components: Components, mask: jax.Array, most: int, lead: tuple[int, ...]
) -> sites.Operation:
    """The masked operation by its active pairs; places left over go to a component of zeros."""
    count = mask.shape[-1]
    # Active entries come first, in order; `nonzero` would sum over all that precede an entry.
    active, found = jax.lax.top_k(mask.reshape(-1).astype(jnp.float32), most)
    empty = active == 0
    pairs = jnp.where(empty, 0, found // count), jnp.where(empty, count, found % count)
    padded = jax.tree.map(
        lambda leaf: jnp.pad(leaf, [(0, 1)] + [(0, 0)] * (leaf.ndim - 1)), components
    )
    return forward.masked_pairs(padded, pairs, lead)
