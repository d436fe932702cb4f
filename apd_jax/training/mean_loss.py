"""The loss of components on more examples than a step has, in blocks."""

import jax

from apd_jax import blocks
from apd_jax.components import Components
from apd_jax.objective.coefficients import Multipliers
from apd_jax.objective.objective import Objective
from apd_jax.sites import PyTree, Target


def mean_loss(
    objective: Objective,
    target: Target,
    components: Components,
    x: PyTree,
    key: jax.Array | None,
    multipliers: Multipliers,
    block_size: int | None = None,
) -> jax.Array:
    """The total loss of components, the mean over blocks of examples.

    Args:
      objective: what is minimised.
      target: the network.
      components: `{site: Factors}`.
      x: [N, ...] examples.
      key: PRNG key for the sketch's directions and the random masks, the same for every block, so
        that the losses of two sets of components differ by the components alone.
      multipliers: multipliers of the coefficients and of k.
      block_size: number of examples of a block; None for a single block of all.
    """

    def of_part(part):
        terms, _ = objective.terms(target, components, part, key, multipliers)
        return objective.total(terms, multipliers), objective.weight(part)

    values, weights = blocks.over_blocks(of_part, x, block_size)
    return blocks.mean(values, None if objective.valid is None else weights)
