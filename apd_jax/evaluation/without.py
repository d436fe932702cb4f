"""What changes without a component, on the examples that it is important for.

Letters: P pairs of a component and an example, B pairs of a block, T positions, C components.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import sites, validity
from apd_jax.components import num_components
from apd_jax.evaluation.evidence import distance
from apd_jax.evaluation.evidence.distance import Kind, Sums
from apd_jax.evaluation.evidence.parts import Parts, run
from apd_jax.evaluation.evidence.rows import Examples
from apd_jax.evaluation.model import ComponentModel
from apd_jax.programs.compiled import jit_with_network
from apd_jax.sites import PyTree, Target
from apd_jax.validity import Valid


def changes(
    decomposition: ComponentModel, x: PyTree, components: np.ndarray, examples: np.ndarray
) -> np.ndarray:
    """Distance between the output of all components and that of all but one.

    It is the KL divergence in nats (the mean over an example's positions) where the training
    minimises it, else the squared difference over that of a zero output. Of an example those
    positions are taken that count.

    Args:
      decomposition: a decomposition.
      x: [N, ...] inputs.
      components: [P] numbers of the components that are taken out.
      examples: [P] numbers of the inputs that the network is run on.

    Returns:
      [P] distances.
    """
    objective, target = decomposition.objective, decomposition.target
    kind, parts = distance.kind_of(objective.minimality_loss), Parts(decomposition.components)
    lead = sites.position_shape(target, x) if objective.per_position else ()
    found = []
    size = decomposition.settings.batch_size
    for at in np.array_split(np.arange(len(examples)), max(1, math.ceil(len(examples) / size))):
        block = jax.tree.map(lambda leaf, at=at: jnp.asarray(np.asarray(leaf)[examples[at]]), x)
        count = num_components(decomposition.components)
        kept = np.ones((len(at), count), np.float32)
        kept[np.arange(len(at)), components[at]] = 0.0
        mask = np.broadcast_to(
            kept.reshape(len(at), *(1,) * len(lead), -1), (len(at), *lead, kept.shape[1])
        )
        valid = objective.counted(block)
        counted = Examples(block, _counts(kind, target, block, valid, lead))
        sums = jax.device_get(_compared(kind, target, parts, counted, valid, mask))
        found.append(sums.error / np.maximum(sums.unit, 1e-30))
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
    kind: Kind, target: Target, parts: Parts, block: Examples, valid: Valid, mask: jax.Array
) -> Sums:
    everything, rest = (run(target, parts, block.x, own) for own in (jnp.ones_like(mask), mask))
    if kind == "mse":  # one output may have positions and another none
        everything, rest = (validity.keep(valid, outputs) for outputs in (everything, rest))
    return distance.compare(kind, rest, block._replace(outputs=everything))
