"""What a decomposition does feature by feature, for the component browser.

Letters: B batch, C components, F probe inputs (features), O outputs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.data import SampleBatch
from apd_jax.decomposition.result import Decomposition
from apd_jax.masked.forward import masked_apply
from apd_jax.studies.study import ProbeInputs


class Probes(NamedTuple):
    """Answers to probe inputs, and how often components are active.

    Attributes:
      attributions: [F, C] of every probe input.
      mask: [F, C] bool, batch top-k over the F inputs, one component an input on average.
      target_outputs: [F, O].
      topk_outputs: [F, O] with the components of `mask` alone.
      active_share: [C] share of the examples of the input distribution that activate a component.
    """

    attributions: np.ndarray
    mask: np.ndarray
    target_outputs: np.ndarray
    topk_outputs: np.ndarray
    active_share: np.ndarray


def one_hot(num_features: int) -> ProbeInputs:
    """Every feature in turn at 1, the others at 0."""
    return ProbeInputs(jnp.eye(num_features), "one input feature is 1, all others are 0")


def probe(
    decomposition: Decomposition,
    sample_batch: SampleBatch,
    x: jax.Array,
    *,
    key: jax.Array,
    num_batches: int = 20,
) -> Probes:
    """Put probe inputs and batches of the input distribution through a decomposition.

    Args:
      decomposition: what is probed.
      sample_batch: the input distribution, `(key, batch_size) -> x [B, ...]`.
      x: [F, ...] the probe inputs.
      key: random key.
      num_batches: batches for `active_share`, each of the training's size.
    """
    scores = decomposition.attributions(x)
    objective = decomposition.objective
    mask = objective.with_topk(1, selection="batch").select(scores, x).mask

    @jax.jit
    def share(batch_key):
        batch = sample_batch(batch_key, decomposition.settings.batch_size)
        return jnp.mean(decomposition.mask(batch), axis=0)

    shares = [share(jax.random.fold_in(key, index)) for index in range(num_batches)]
    return Probes(
        attributions=np.asarray(scores),
        mask=np.asarray(mask),
        target_outputs=np.asarray(decomposition.target(x)),
        topk_outputs=np.asarray(
            masked_apply(decomposition.target, decomposition.components, x, mask)
        ),
        active_share=np.mean(shares, axis=0),
    )
