"""Initial components that are made from the target's weights instead of drawn at random."""

from collections.abc import Callable

import jax

from apd_jax.components import Components
from apd_jax.sites import Target
from apd_jax.training.initialisation.covering import cover_target
from apd_jax.training.initialisation.partitioned import partition_target

# (target, inputs, components of the shapes to return) -> components
STARTS: dict[str, Callable[[Target, jax.Array, Components], Components]] = {
    "partitioned": partition_target,
    "covering": cover_target,
}
