"""Initial components that are made from the target's weights instead of drawn at random."""

from collections.abc import Callable

from apd_jax.components import Components
from apd_jax.training.initialisation.covering import cover_target
from apd_jax.training.initialisation.partitioned import partition_target
from apd_jax.training.initialisation.singular import deal_singular_vectors

# (objective, target, inputs, components of the shapes to return, block size) -> components
STARTS: dict[str, Callable[..., Components]] = {
    "partitioned": lambda objective, target, x, components, block_size=None: partition_target(
        target, x, components, valid=objective.valid, block_size=block_size
    ),
    "covering": lambda objective, target, x, components, block_size=None: cover_target(
        target, x, components, valid=objective.valid, block_size=block_size
    ),
    "singular": deal_singular_vectors,
}
