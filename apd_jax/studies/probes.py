"""Responses of a decomposition to probe inputs, for the component browser.

Letters: B batch, C components, F probe inputs (features), O outputs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.data import SampleBatch
from apd_jax.decomposition.result import Decomposition
from apd_jax.evaluation import without
from apd_jax.masked.forward import masked_apply
from apd_jax.studies.study import ProbeInputs


class Probes(NamedTuple):
    """Responses to probe inputs, and the active share of every component.

    Attributes:
      attributions: attributions on every probe input, [F, C].
      topk_mask: batch top-k over the F inputs, one component per input on average, [F, C] bool.
      target_outputs: outputs of the target, [F, O].
      topk_outputs: outputs of the components of `topk_mask` alone, [F, O].
      without: change of the output on every probe input without each component, [F, C]; see
        `evaluation.without`.
      active_share: share of the examples of the input distribution that activate each component,
        [C].
    """

    attributions: np.ndarray
    topk_mask: np.ndarray
    target_outputs: np.ndarray
    topk_outputs: np.ndarray
    without: np.ndarray
    active_share: np.ndarray


def one_hot(num_features: int) -> ProbeInputs:
    """Inputs with one feature at 1 and all others at 0, one for each feature."""
    return ProbeInputs(jnp.eye(num_features), "one input feature is 1, all others are 0")


def probe(
    decomposition: Decomposition,
    sample_batch: SampleBatch,
    x: jax.Array,
    *,
    key: jax.Array,
    num_batches: int = 20,
) -> Probes:
    """Run a decomposition on probe inputs and on batches of the input distribution.

    Args:
      decomposition: the decomposition to probe.
      sample_batch: the input distribution, `(key, batch_size) -> x [B, ...]`.
      x: probe inputs, [F, ...].
      key: PRNG key for the batches.
      num_batches: number of batches for `active_share`, each of the training's batch size.
    """
    scores = decomposition.attributions(x)
    objective = decomposition.objective
    mask = objective.with_topk(1, selection="batch").select(scores, x).mask

    @jax.jit
    def share(batch_key):
        batch = sample_batch(batch_key, decomposition.settings.batch_size)
        return jnp.mean(decomposition.mask(batch), axis=0)

    inputs, components = np.divmod(np.arange(scores.size), scores.shape[1])
    shares = [share(jax.random.fold_in(key, index)) for index in range(num_batches)]
    return Probes(
        attributions=np.asarray(scores),
        topk_mask=np.asarray(mask),
        target_outputs=np.asarray(decomposition.target(x)),
        topk_outputs=np.asarray(
            masked_apply(decomposition.target, decomposition.components, x, mask)
        ),
        without=without.changes(decomposition, x, components, inputs).reshape(scores.shape),
        active_share=np.mean(shares, axis=0),
    )
