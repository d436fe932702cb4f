"""Initial components that are made from the target's weights instead of drawn at random."""

from collections.abc import Callable

from apd_jax.components import Components
from apd_jax.objective.objective import Objective
from apd_jax.sites import PyTree, Target
from apd_jax.training.initialisation.covering import cover_target
from apd_jax.training.initialisation.partitioned import partition_target
from apd_jax.training.initialisation.singular import deal_singular_vectors

# (objective, target, inputs, components of the shapes to return) -> components
STARTS: dict[str, Callable[[Objective, Target, PyTree, Components], Components]] = {
    "partitioned": lambda _, *others: partition_target(*others),
    "covering": lambda _, *others: cover_target(*others),
    "singular": deal_singular_vectors,
}
