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
from apd_jax.components import Components
from apd_jax.masked import forward
from apd_jax.masked.columns import Columns
from apd_jax.sites import PyTree, SiteCall, Target


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
    return {site: factors.scaled(r).sum() for site, factors in components.items()}
