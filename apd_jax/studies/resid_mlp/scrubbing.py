"""Scrubbing: tests whether a feature's component is sufficient and necessary for the feature.

Each feature is mapped to one component. For every input a random half of all components is switched
on. Then the components of the active features are added (scrubbed) or removed (anti-scrubbed). A
good decomposition keeps its output in the first case and loses it in the second.

Letters: B batch, C components, F features, O output width, S samples.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.components import Components
from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.evaluation import seen
from apd_jax.masked.forward import masked_apply
from apd_jax.objective.objective import Objective
from apd_jax.sites import Target
from apd_jax.studies.reconstruction import (
    LabelFn,
    baseline_outputs,
    num_batches,
    row_mse,
    stream,
)

Array = np.ndarray | jax.Array


class ScrubbingSamples(NamedTuple):
    """Errors of every sample of the training distribution, one entry per sample.

    Attributes:
      num_active: number of active features, [S] int.
      feature: the active feature if there is exactly one, else the first or 0, [S] int.
      components_active: number of components that the training's rule selects, [S] int.
      topk, scrubbed, antiscrubbed: MSE against the target's output, [S].
      random: the same with a random half of the components, regardless of the input, [S].
      monosemantic, zero: the same for the monosemantic baseline and for an output of zeros, [S].
      label_target, label_topk, label_top1: MSE against the labels for the target, the components
        that the training's rule selects, and the component of largest attribution alone, [S].
    """

    num_active: Array
    feature: Array
    components_active: Array
    topk: Array
    scrubbed: Array
    antiscrubbed: Array
    random: Array
    monosemantic: Array
    zero: Array
    label_target: Array
    label_topk: Array
    label_top1: Array


class ScrubbingMasks(NamedTuple):
    """Masks of the components that are on, each [B, C] bool; all three from the same draw.

    Attributes:
      random: a random half of the components.
      scrubbed: the random half and the components of the active features.
      antiscrubbed: the random half without the components of the active features.
    """

    random: jax.Array
    scrubbed: jax.Array
    antiscrubbed: jax.Array


class PerFeature(NamedTuple):
    """Averages over the samples in which only one feature is active.

    Entries are NaN for features that are never active alone.

    Attributes:
      num_samples: number of such samples, [F] int.
      label_target, label_topk, label_top1: mean MSE against the labels (see `ScrubbingSamples`),
        [F].
      components_active: mean number of components that the training's rule selects, [F].
      order: features sorted by `label_target`, [F] int.
    """

    num_samples: np.ndarray
    label_target: np.ndarray
    label_topk: np.ndarray
    label_top1: np.ndarray
    components_active: np.ndarray
    order: np.ndarray


def feature_component_map(
    target: Target,
    components: Components,
    *,
    num_features: int,
    objective: Objective,
) -> jax.Array:
    """The component with the largest attribution for each one-hot input, [F] int32.

    A component that is always active is excluded.
    """
    one_hot = jnp.eye(num_features)
    scores = seen.score(objective, target, components, one_hot)
    counted = scores[:, : scores.shape[1] - objective.distil]
    return jnp.argmax(counted, axis=-1).astype(jnp.int32)


def scrubbing_masks(
    key: jax.Array, active: jax.Array, feature_map: jax.Array, always: jax.Array
) -> ScrubbingMasks:
    """Draw a random half of the components, with and without those of the active features.

    Args:
      key: PRNG key for the random half. Each component is in it with probability 1/2,
        independently for every row.
      active: the active features, [B, F] bool.
      feature_map: the component of each feature, [F] int.
      always: the components that are always on, [C] bool.
    """
    half = always | jax.random.bernoulli(key, 0.5, (active.shape[0], always.size))
    needed = jnp.zeros(half.shape, bool).at[:, feature_map].max(active)
    return ScrubbingMasks(half, half | needed, half & ~needed)


@functools.partial(
    jax.jit,
    static_argnames=("distribution", "batch_size", "objective", "num_neurons"),
)
def _sample_batch(
    target: Target,
    components: Components,
    label_fn: LabelFn,
    feature_map: jax.Array,
    key: jax.Array,
    *,
    distribution: SparseFeatures,
    batch_size: int,
    objective: Objective,
    num_neurons: int,
) -> ScrubbingSamples:
    """One batch of `scrubbing_samples`."""
    input_key, mask_key = jax.random.split(key)
    x = distribution(input_key, batch_size)
    active, labels, outputs = x != 0, label_fn(x), target(x)
    scores = objective.attribute(target, components, x).scores
    selected = objective.select(scores, x).mask
    strongest = objective.with_topk(1, selection="sample").select(scores, x).mask
    with_mask = functools.partial(masked_apply, target, components, x)
    always = objective.always_active(scores.shape[1])
    masks = scrubbing_masks(mask_key, active, feature_map, always)
    topk_outputs = with_mask(selected)
    baseline = baseline_outputs(x, labels, num_exact=num_neurons, passthrough=True)
    return ScrubbingSamples(
        num_active=active.sum(axis=-1),
        feature=jnp.argmax(active, axis=-1),
        components_active=selected.sum(axis=-1),
        topk=row_mse(topk_outputs, outputs),
        scrubbed=row_mse(with_mask(masks.scrubbed), outputs),
        antiscrubbed=row_mse(with_mask(masks.antiscrubbed), outputs),
        random=row_mse(with_mask(masks.random), outputs),
        monosemantic=row_mse(baseline, outputs),
        zero=row_mse(jnp.zeros_like(outputs), outputs),
        label_target=row_mse(outputs, labels),
        label_topk=row_mse(topk_outputs, labels),
        label_top1=row_mse(with_mask(strongest), labels),
    )


def scrubbing_samples(
    target: Target,
    components: Components,
    label_fn: LabelFn,
    feature_map: jax.Array,
    *,
    key: jax.Array,
    distribution: SparseFeatures,
    objective: Objective,
    num_neurons: int,
    batch_size: int,
    num_samples: int,
) -> ScrubbingSamples:
    """Measure the errors of every sample of the training distribution.

    As in the paper's means, samples without any active feature are included (37% at 100 features
    and p=0.01).

    Args:
      target: a residual MLP, [B, F] -> [B, F].
      components: the components of the target.
      label_fn: function of inputs [B, F] that returns labels [B, F].
      feature_map: the component of each feature, [F] int.
      key: PRNG key for the inputs and the masks.
      distribution: training distribution of the inputs.
      objective: objective whose rule selects the active components.
      num_neurons: number of features that the monosemantic baseline computes exactly.
      batch_size: rows per batch. Batch top-k selects within a batch, so use the training's size.
      num_samples: S, rounded up to whole batches.

    Returns:
      `ScrubbingSamples`, on the host.
    """
    batch_fn = functools.partial(
        _sample_batch,
        target,
        components,
        jax.tree_util.Partial(label_fn),
        feature_map,
        distribution=distribution,
        batch_size=batch_size,
        objective=objective,
        num_neurons=num_neurons,
    )
    return stream(batch_fn, key, num_batches(num_samples, batch_size))


def per_feature(samples: ScrubbingSamples, *, num_features: int) -> PerFeature:
    """Average over the samples in which exactly one feature is active, for each feature.

    Args:
      samples: samples as returned by `scrubbing_samples`.
      num_features: F.

    Returns:
      `PerFeature`.
    """
    alone = samples.num_active == 1
    feature = samples.feature[alone]
    count = np.bincount(feature, minlength=num_features)

    def mean(values: Array) -> np.ndarray:
        total = np.bincount(feature, weights=np.asarray(values)[alone], minlength=num_features)
        return np.divide(total, count, out=np.full(num_features, np.nan), where=count > 0)

    label_target = mean(samples.label_target)
    return PerFeature(
        num_samples=count,
        label_target=label_target,
        label_topk=mean(samples.label_topk),
        label_top1=mean(samples.label_top1),
        components_active=mean(samples.components_active),
        order=np.argsort(label_target, kind="stable"),
    )
