"""A network run with weighted parts in the place of its matrices.

Parts are the components themselves, or terms of rank one that belong to one site each, as singular
vectors do: these need no zeros for the other sites. Several terms may share a weight (a bundle).
Letters: B batch, T positions, C weights of a row, q terms of a site.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from apd_jax import sites
from apd_jax.components import Components, num_components
from apd_jax.masked import forward
from apd_jax.sites import PyTree, SiteCall, Target


class Parts(NamedTuple):
    """Terms of every site, and which weight each of them has.

    Attributes:
      terms: `{site: Factors}` with q terms each.
      owner: `{site: [q] int32}`, the column of the mask that scales a term; None where terms are
        components, which all sites share.
    """

    terms: Components
    owner: dict[str, jax.Array] | None = None

    def operation(self, mask: jax.Array) -> sites.Operation:
        """The masked operation of a mask [B, (T), C] of weights.

        What a pass holds for its derivative with respect to the mask is the rows that sites read;
        the wider `x U` is computed again.
        """

        def run(call: SiteCall) -> jax.Array:
            name = call.key[0]
            weights = mask
            if self.owner is not None:
                weights = jnp.take(mask, self.owner[name], axis=-1)
            whole = forward.masked({name: self.terms[name]}, weights)
            return jax.checkpoint(lambda x: whole(call._replace(x=x)))(call.x)

        return run

    def num_weights(self) -> int:
        """C."""
        if self.owner is None:
            return num_components(self.terms)
        return 1 + max(int(owner.max()) for owner in self.owner.values())


def run(target: Target, parts: Parts, x: PyTree, mask: jax.Array) -> PyTree:
    """Outputs with the parts scaled by a mask [B, C] or [B, T, C]."""

    def some(inputs, rows):
        return sites.run(target, inputs, parts.operation(rows), positions=mask.ndim == 3)[0]

    return sites.over_examples(some, target, x, mask)
