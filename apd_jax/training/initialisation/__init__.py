"""Initial components that are made from the target's weights instead of drawn at random."""

from collections.abc import Callable

from apd_jax.components import Components
from apd_jax.training.initialisation.covering import cover_target
from apd_jax.training.initialisation.partitioned import partition_target

# (target, inputs, components of the shapes to return, valid=, block_size=) -> components
STARTS: dict[str, Callable[..., Components]] = {
    "partitioned": partition_target,
    "covering": cover_target,
}
