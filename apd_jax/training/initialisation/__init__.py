"""Initial components that are made from the target's weights instead of drawn at random."""

import functools
from collections.abc import Callable

from apd_jax.components import Components
from apd_jax.training.initialisation import covering, partitioned
from apd_jax.training.initialisation.groups import start_from_groups
from apd_jax.training.initialisation.singular import deal_singular_vectors

# (objective, target, inputs, components of the shapes to return, block size) -> components
STARTS: dict[str, Callable[..., Components]] = {
    "partitioned": functools.partial(start_from_groups, pieces=partitioned.pieces, examples=1024),
    "covering": functools.partial(
        start_from_groups, pieces=covering.pieces, examples=2048, least=covering.LEAST
    ),
    "singular": deal_singular_vectors,
}
