"""What a decomposition does feature by feature, for the component browser.

Letters: B batch, C components, F features, O outputs.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.decompose import SampleBatch
from apd_jax.decomposition import Decomposition
from apd_jax.forward import masked_apply


class Probes(NamedTuple):
    """Answers to one-hot inputs, and how often components are active.

    Attributes:
      attributions: [F, C] for the input with feature i at 1.
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


def probe(
    decomposition: Decomposition,
    sample_batch: SampleBatch,
    *,
    key: jax.Array,
    num_features: int,
    num_batches: int = 20,
) -> Probes:
    """Put one-hot inputs and batches of the input distribution through a decomposition.

    Args:
      decomposition: what is probed.
      sample_batch: the input distribution, `(key, batch_size) -> x [B, F]`.
      key: random key.
      num_features: F.
      num_batches: batches for `active_share`, each of the training's size.
    """
    x = jnp.eye(num_features)
    scores = decomposition.attributions(x)
    objective = decomposition.settings.objective
    mask = dataclasses.replace(objective, selection="batch", topk=1).select(scores, x).mask

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
