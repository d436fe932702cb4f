"""Responses of the target and of single components to one active input at a time.

Letters: B batch, C components, F features, O output width, P points of a sweep.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.components import Components, num_components
from apd_jax.errors import UserError
from apd_jax.masked.forward import masked_apply
from apd_jax.objective.objective import Objective
from apd_jax.sites import Target
from apd_jax.studies.reconstruction import LabelFn, num_batches, stream
from apd_jax.studies.resid_mlp.scrubbing import scrubbing_masks

SINGLE_COMPONENT_SHARE = 0.1


class FeatureSweeps(NamedTuple):
    """Responses to each input swept over [-1, 1], with all others 0.

    Errors are means over the sweep and over all outputs.

    Attributes:
      inputs: values of the swept input, [P].
      target: the target's output of the swept feature, [F, P].
      component: the same output with the feature's component alone, [F, P].
      labels: labels of the swept feature, [F, P].
      one_hot_outputs: row i has all outputs of the target for x_i = 1, [F, O].
      one_hot_labels: labels of the same inputs, [F, O].
      component_mse: MSE against the target with the feature's component alone, [F].
      no_component_mse: MSE against the target without any component, [F].
      top1_mse: MSE against the target with the component of largest attribution at every point,
        [F].
      top2_mse: the same with the two components of largest attribution, [F].
      held: whether `component_mse` is below a tenth of `no_component_mse`, [F] bool.
      held_by_two: whether the lower of `component_mse` and `top2_mse` is, [F] bool.
    """

    inputs: np.ndarray
    target: np.ndarray
    component: np.ndarray
    labels: np.ndarray
    one_hot_outputs: np.ndarray
    one_hot_labels: np.ndarray
    component_mse: np.ndarray
    no_component_mse: np.ndarray
    top1_mse: np.ndarray
    top2_mse: np.ndarray
    held: np.ndarray
    held_by_two: np.ndarray


class AblationResponse(NamedTuple):
    """Output of the MLPs for a one-hot input under random ablation of half the components.

    The output of the MLPs is the network's output minus its output without any component. Means
    and standard deviations are over random halves.

    Attributes:
      feature: the active feature, int.
      target: output of the target's MLPs, [O].
      scrubbed_mean, scrubbed_std: output with the feature's component always on, [O].
      antiscrubbed_mean, antiscrubbed_std: output with the feature's component always off, [O].
    """

    feature: int
    target: np.ndarray
    scrubbed_mean: np.ndarray
    scrubbed_std: np.ndarray
    antiscrubbed_mean: np.ndarray
    antiscrubbed_std: np.ndarray


@functools.partial(jax.jit, static_argnames="objective")
def _sweep(target, components, label_fn, points, feature, feature_map, *, objective):
    """The row of one feature in each array of `FeatureSweeps`."""
    one_hot = jax.nn.one_hot(feature, len(feature_map))[None]
    x = points[:, None] * one_hot
    outputs = target(x)
    scores = objective.attribute(target, components, x).scores
    always = jnp.broadcast_to(objective.always_active(scores.shape[1]), scores.shape)
    single = always | (jnp.arange(scores.shape[1]) == feature_map[feature])
    alone = masked_apply(target, components, x, single)
    nothing = masked_apply(target, components, x, always)

    def largest(count):
        rule = objective.with_topk(count, selection="sample")
        return masked_apply(target, components, x, rule.select(scores, x).mask)

    def mse(other):
        return jnp.mean(jnp.square(other - outputs))

    return {
        "target": outputs[:, feature],
        "component": alone[:, feature],
        "labels": label_fn(x)[:, feature],
        "one_hot_outputs": target(one_hot)[0],
        "one_hot_labels": label_fn(one_hot)[0],
        "component_mse": mse(alone),
        "no_component_mse": mse(nothing),
        "top1_mse": mse(largest(1)),
        "top2_mse": mse(largest(min(2, scores.shape[1] - objective.distil))),
    }


def feature_sweeps(
    target: Target,
    components: Components,
    label_fn: LabelFn,
    feature_map: jax.Array,
    *,
    objective: Objective,
    num_points: int = 51,
) -> FeatureSweeps:
    """Sweep every input over [-1, 1] and measure its own component.

    Args:
      target: a network, [B, F] -> [B, F].
      components: the components of the target.
      label_fn: function of inputs [B, F] that returns labels [B, F].
      feature_map: the component of each feature, [F] int.
      objective: objective that determines attributions and any always-active component.
      num_points: P.

    Returns:
      `FeatureSweeps`, on the host.
    """
    points = jnp.linspace(-1.0, 1.0, num_points)
    label_fn = jax.tree_util.Partial(label_fn)
    sweep = functools.partial(_sweep, target, components, label_fn, points, objective=objective)
    rows = [
        jax.device_get(sweep(feature=feature, feature_map=feature_map))
        for feature in range(len(feature_map))
    ]
    fields = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    most = SINGLE_COMPONENT_SHARE * fields["no_component_mse"]
    held = fields["component_mse"] < most
    held_by_two = held | (fields["top2_mse"] < most)
    return FeatureSweeps(inputs=np.asarray(points), held=held, held_by_two=held_by_two, **fields)


@functools.partial(jax.jit, static_argnames=("num_draws", "objective"))
def _ablated_outputs(target, components, feature_map, feature, key, *, num_draws, objective):
    """MLP outputs of target [1, O], scrubbed and anti-scrubbed, both [num_draws, O]."""
    one_hot = jax.nn.one_hot(feature, len(feature_map))
    x = jnp.broadcast_to(one_hot, (num_draws, len(feature_map)))
    count = num_components(components)
    masks = scrubbing_masks(key, x != 0, feature_map, objective.always_active(count))
    nothing = masked_apply(target, components, x[:1], jnp.zeros((1, count), bool))
    return (
        target(x[:1]) - nothing,
        masked_apply(target, components, x, masks.scrubbed) - nothing,
        masked_apply(target, components, x, masks.antiscrubbed) - nothing,
    )


def ablation_response(
    target: Target,
    components: Components,
    feature_map: jax.Array,
    *,
    key: jax.Array,
    feature: int,
    objective: Objective,
    num_draws: int = 1000,
    batch_size: int = 256,
) -> AblationResponse:
    """Ablate random halves of the components while one feature is set to 1.

    Args:
      target: a residual MLP, [B, F] -> [B, F].
      components: the components of the target.
      feature_map: the component of each feature, [F] int.
      key: PRNG key for the random halves.
      feature: the active feature.
      objective: objective that determines any always-active component.
      num_draws: number of random halves, rounded up to whole batches.
      batch_size: random halves per batch.

    Returns:
      `AblationResponse`, on the host.

    Raises:
      UserError: there is no such feature.
    """
    if not 0 <= feature < len(feature_map):
        raise UserError(f"feature={feature}: expected 0..{len(feature_map) - 1}.")
    ablated = functools.partial(
        _ablated_outputs,
        target,
        components,
        feature_map,
        feature,
        num_draws=batch_size,
        objective=objective,
    )
    own, scrubbed, antiscrubbed = stream(ablated, key, num_batches(num_draws, batch_size))
    return AblationResponse(
        feature=feature,
        target=own[0],
        scrubbed_mean=scrubbed.mean(axis=0),
        scrubbed_std=scrubbed.std(axis=0),
        antiscrubbed_mean=antiscrubbed.mean(axis=0),
        antiscrubbed_std=antiscrubbed.std(axis=0),
    )
