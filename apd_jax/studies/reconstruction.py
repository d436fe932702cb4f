"""How well components reconstruct weights and outputs: measures that all studies share.

Letters: B batch, C components, F features, O output width, G groups of inputs.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.components import Components
from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.errors import UserError
from apd_jax.evaluation import seen
from apd_jax.masked.forward import masked_apply
from apd_jax.objective.objective import Objective
from apd_jax.runtime.preemption import stop_if_asked
from apd_jax.sites import PyTree, Target

Inputs = Callable[[jax.Array, int], jax.Array]
LabelFn = Callable[[jax.Array], jax.Array]


class LabelErrors(NamedTuple):
    """MSE against the labels for groups of inputs with different numbers of active features.

    Attributes:
      num_active: number of active features in the group, [G] int. 0 stands for the training
        distribution without its rows that have no active feature.
      target: MSE of the target network, [G].
      topk: MSE of the active components, [G]. They are selected by the training's rule on the
        training distribution, and are the `n` components of largest attribution on rows with
        exactly `n` active features.
      baseline: MSE of the monosemantic baseline (see `baseline_outputs`), [G].
    """

    num_active: np.ndarray
    target: np.ndarray
    topk: np.ndarray
    baseline: np.ndarray


def faithfulness_mse(target: Target, components: Components) -> float:
    """The largest over sites of `mean_ij (θ*_l − Σ_c P_{c,l})²`.

    Args:
      target: the decomposed network, with weights {site: [d_in, d_out]}.
      components: components {site: factors} whose sum should equal these weights.

    Returns:
      The MSE as a float; 0 if the components sum to the weights exactly.
    """
    errors = [
        jnp.mean(jnp.square(target.weights[site] - factors.sum()))
        for site, factors in components.items()
    ]
    return float(max(errors))


def baseline_outputs(
    x: jax.Array, labels: jax.Array, *, num_exact: int, passthrough: bool
) -> jax.Array:
    """The outputs of the monosemantic baseline, which spends each neuron on one feature.

    Args:
      x: inputs, [B, F].
      labels: outputs of a perfect network, [B, F].
      num_exact: number of neurons (or hidden dimensions). The first `num_exact` features get
        their exact label.
      passthrough: whether the outputs of the other features equal their inputs (as with a
        residual stream) instead of 0.

    Returns:
      Outputs, [B, F].
    """
    rest = x if passthrough else jnp.zeros_like(x)
    return jnp.where(jnp.arange(x.shape[-1]) < num_exact, labels, rest)


def row_mse(outputs: jax.Array, reference: jax.Array) -> jax.Array:
    """The mean over outputs of the squared difference of two [B, O] arrays, [B]."""
    return jnp.mean(jnp.square(outputs - reference), axis=-1)


def features_held(component: np.ndarray, holds: np.ndarray, num_components: int) -> list[list[int]]:
    """For every component, the features that it holds.

    Args:
      component: the best component of each feature, [F] int; -1 for none.
      holds: whether that component holds the feature, [F] bool.
      num_components: C.
    """
    return [np.flatnonzero(holds & (component == c)).tolist() for c in range(num_components)]


def num_batches(num_samples: int, batch_size: int) -> int:
    """The number of whole batches that hold at least `num_samples` rows.

    Raises:
      UserError: either number is below 1.
    """
    if num_samples < 1 or batch_size < 1:
        raise UserError(
            f"num_samples={num_samples} and batch_size={batch_size} must both be at least 1."
        )
    return -(-num_samples // batch_size)


def stream(batch_fn: Callable[[jax.Array], PyTree], key: jax.Array, count: int) -> PyTree:
    """Run a function on `count` batches and concatenate the results on the host.

    The device holds one batch at a time.

    Args:
      batch_fn: function of a key that returns a pytree of arrays with a leading batch axis.
      key: PRNG key; batch `i` gets `fold_in(key, i)`.
      count: number of batches.

    Returns:
      The same pytree with numpy arrays of length `count * B`.
    """
    batches = []
    for i in range(count):
        stop_if_asked()
        batches.append(jax.device_get(batch_fn(jax.random.fold_in(key, i))))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


@functools.partial(jax.jit, static_argnames=("inputs", "batch_size"))
def draw(key: jax.Array, *, inputs: Inputs, batch_size: int) -> jax.Array:
    """A batch of inputs; compiled once for each distribution."""
    return inputs(key, batch_size)


@functools.partial(jax.jit, static_argnames="objective")
def select(scores: jax.Array, x: jax.Array, *, objective: Objective) -> jax.Array:
    """The mask that the objective's rule selects; compiled once for each rule."""
    return objective.select(scores, x).mask


@functools.partial(jax.jit, static_argnames="objective")
def outputs(
    target: Target, components: Components, x: jax.Array, *, objective: Objective
) -> tuple[jax.Array, jax.Array]:
    """The outputs of the target and of the active components, each [B, O]."""
    mask = objective.select(objective.attribute(target, components, x).scores, x).mask
    return target(x), masked_apply(target, components, x, mask)


def topk_errors(
    inputs: Inputs,
    target: Target,
    components: Components,
    *,
    objective: Objective,
    key: jax.Array,
    batch_size: int,
    num_samples: int,
) -> tuple[float, float]:
    """The MSE of the active components' output, and the mean square of the target's.

    Args:
      inputs: function of a key and B that returns a batch, [B, ...]; hashable.
      target: the decomposed network, [B, ...] -> [B, O].
      components: the components of the target.
      objective: objective whose rule selects the active components.
      key: PRNG key for the inputs.
      batch_size: B. Batch top-k selects within a batch, so use the training's size.
      num_samples: number of inputs, rounded up to whole batches.
    """

    def batch(batch_key: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = draw(batch_key, inputs=inputs, batch_size=batch_size)
        own, active = outputs(target, components, x, objective=objective)
        return row_mse(active, own), row_mse(jnp.zeros_like(own), own)

    errors, squares = stream(batch, key, num_batches(num_samples, batch_size))
    return float(errors.mean(dtype=np.float64)), float(squares.mean(dtype=np.float64))


@functools.partial(jax.jit, static_argnames=("num_exact", "passthrough"))
def _label_rows(
    target: Target,
    components: Components,
    label_fn: LabelFn,
    x: jax.Array,
    mask: jax.Array,
    *,
    num_exact: int,
    passthrough: bool,
) -> tuple[jax.Array, ...]:
    """Whether any feature of a row is active, and errors of target, components and baseline."""
    labels = label_fn(x)
    baseline = baseline_outputs(x, labels, num_exact=num_exact, passthrough=passthrough)
    masked = masked_apply(target, components, x, mask)
    errors = (row_mse(outputs, labels) for outputs in (target(x), masked, baseline))
    return jnp.any(x != 0, axis=-1), *errors


def label_errors(
    target: Target,
    components: Components,
    label_fn: LabelFn,
    *,
    key: jax.Array,
    distribution: SparseFeatures,
    objective: Objective,
    max_active: int,
    num_exact: int,
    passthrough: bool,
    batch_size: int,
    num_samples: int,
) -> LabelErrors:
    """Measure the MSE against labels on the training distribution and for exactly 1..n active.

    Args:
      target: the decomposed network, [B, F] -> [B, F].
      components: the components of the target.
      label_fn: function of inputs [B, F] that returns labels [B, F].
      key: PRNG key for the inputs.
      distribution: training distribution of the inputs.
      objective: objective whose rule selects components on the training distribution.
      max_active: largest number of active features to measure (at most F is used).
      num_exact: see `baseline_outputs`.
      passthrough: see `baseline_outputs`.
      batch_size: rows per batch. Batch top-k selects within a batch, so use the training's size.
      num_samples: rows per group, rounded up to whole batches.

    Returns:
      `LabelErrors` with G = 1 + min(max_active, F) groups.
    """
    groups = np.arange(1 + min(max_active, distribution.num_features))
    label_fn = jax.tree_util.Partial(label_fn)
    count = num_batches(num_samples, batch_size)
    exactly = functools.partial(dataclasses.replace, distribution, input_mode="exactly_n")

    def batch(key: jax.Array, *, num_active: int) -> tuple[jax.Array, ...]:
        drawn = exactly(num_active=num_active, synced=()) if num_active else distribution
        x = draw(key, inputs=drawn, batch_size=batch_size)
        scores = seen.score(objective, target, components, x)
        few = min(num_active, scores.shape[1] - objective.distil)
        rule = objective.with_topk(few, selection="sample") if num_active else objective
        mask = select(scores, x, objective=rule)
        return _label_rows(
            target, components, label_fn, x, mask, num_exact=num_exact, passthrough=passthrough
        )

    means = []
    for group in groups.tolist():
        batch_fn = functools.partial(batch, num_active=group)
        active, *errors = stream(batch_fn, jax.random.fold_in(key, group), count)
        kept = active if group == 0 and active.any() else slice(None)
        means.append([np.mean(each[kept]) for each in errors])
    return LabelErrors(groups, *np.asarray(means, np.float64).T)
