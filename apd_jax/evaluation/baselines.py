"""Components that need no training, as baselines for a decomposition.

Letters: C components.
"""

import jax.numpy as jnp

from apd_jax.components import Components, Factors
from apd_jax.evaluation.evidence import equal_rank
from apd_jax.masked.columns import Columns
from apd_jax.sites import Target

# A baseline whose factors hold more numbers than this is omitted.
_MAX_NUMBERS = 20_000_000
BASELINES = {
    "svd": "singular directions of every matrix",
    "neurons": "columns of every matrix, one for each output unit",
}


def baseline(target: Target, name: str) -> Components | None:
    """Make components that have rank one at a single site each and add up to the target exactly.

    Args:
      target: the network.
      name: `"svd"`, every singular direction of every matrix; `"neurons"`, every column.

    Returns:
      `{site: Factors}`, or None if they would be too large.
    """
    terms = {
        site: own.factors() if isinstance(own, Columns) else own
        for site, own in equal_rank.terms_of(name, target).items()
    }
    total = sum(own.num_components for own in terms.values())
    if total * sum(side[0].size for own in terms.values() for side in own) > _MAX_NUMBERS:
        return None
    components, start = {}, 0
    for site, own in terms.items():
        before, after = start, total - start - own.num_components
        widths = [(before, after)] + [(0, 0)] * (own.reads.ndim - 1)
        components[site] = Factors(*(jnp.pad(side, widths) for side in own))
        start += own.num_components
    return components
