"""What changes without a component, on the examples that it is important for.

Letters: P pairs of a component and an example, B pairs of a block, T positions, C components.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import sites, validity
from apd_jax.components import Components, num_components
from apd_jax.evaluation.evidence import distance
from apd_jax.evaluation.evidence.distance import Kind, Sums
from apd_jax.evaluation.evidence.rows import Examples
from apd_jax.evaluation.model import ComponentModel
from apd_jax.masked.forward import masked_apply
from apd_jax.programs.compiled import jit_with_network
from apd_jax.sites import PyTree, Target
from apd_jax.validity import Valid


def changes(
    decomposition: ComponentModel, x: PyTree, components: np.ndarray, examples: np.ndarray
) -> np.ndarray:
    """Distance between the output of all components and that of all but one.

    In a targeted decomposition the remainder is part of both, as in `Decomposition.edited`. The
    distance is the KL divergence in nats (the mean over an example's positions) where the training
    minimises it, else the squared difference over that of a zero output. Of an example those
    positions are taken that count.

    Args:
      decomposition: a decomposition.
      x: [N, ...] inputs.
      components: [P] numbers of the components that are taken out.
      examples: [P] numbers of the inputs that the network is run on.

    Returns:
      [P] distances; NaN where the output changes and the network's own is zero, so that there is
      nothing to compare with.
    """
    objective, target = decomposition.objective, decomposition.target
    kind, of_all = distance.kind_of(objective.minimality_loss), decomposition.components
    lead = sites.position_shape(target, x) if objective.per_position else ()
    found = []
    size = decomposition.settings.batch_size
    for at in np.array_split(np.arange(len(examples)), max(1, math.ceil(len(examples) / size))):
        block = jax.tree.map(lambda leaf, at=at: jnp.asarray(np.asarray(leaf)[examples[at]]), x)
        kept = np.ones((len(at), num_components(of_all)), np.float32)
        kept[np.arange(len(at)), components[at]] = 0.0
        remainder = np.ones(len(at), np.float32) if objective.targeted else None
        valid = objective.counted(block)
        counted = Examples(block, _counts(kind, target, block, valid, lead))
        sums = jax.device_get(_compared(kind, target, of_all, counted, valid, kept, remainder))
        undefined = (sums.unit <= 0) & (sums.error > 0)
        found.append(np.where(undefined, np.nan, sums.error / np.maximum(sums.unit, 1e-30)))
    return np.concatenate(found)


def _counts(
    kind: Kind, target: Target, block: PyTree, valid: Valid, lead: tuple[int, ...]
) -> np.ndarray:
    """What counts of a block, [B] or [B, T] float32.

    Squared differences are 0 where `_compared` puts zeros. KL is a mean over what counts here.
    """
    count = sites.batch_size(block)
    if valid is None or kind == "mse":
        return np.ones((count, *lead), np.float32)
    return np.asarray(validity.of_outputs(valid, jax.eval_shape(target, block)), np.float32)


@jit_with_network(static=1)
@jax.default_matmul_precision("highest")
def _compared(
    kind: Kind,
    target: Target,
    components: Components,
    block: Examples,
    valid: Valid,
    mask: jax.Array,
    remainder: jax.Array | None,
) -> Sums:
    everything, rest = (
        masked_apply(target, components, block.x, own, remainder)
        for own in (jnp.ones_like(mask), mask)
    )
    if kind == "mse":  # one output may have positions and another none
        everything, rest = (validity.keep(valid, outputs) for outputs in (everything, rest))
    return distance.compare(kind, rest, block._replace(outputs=everything))
