"""Metrics: which quantities of the outputs an attribution measures, and in which norm.

A metric reduces the change t of the outputs along a component to one number, `A² = Σ_v (v·t)²`.
Letters: B batch, C components, O outputs, n directions v, K classes, J distributions of an example.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from apd_jax import randomness, validity
from apd_jax.config_fields import check_takes
from apd_jax.errors import UserError
from apd_jax.programs.widened import widened
from apd_jax.validity import Valid

PyTree = Any
Metric = Literal["rms", "fisher"] | Callable[[PyTree], PyTree]


def check_metric(metric: Metric) -> None:
    """Raise UserError unless a metric is known, or a function of the outputs."""
    if callable(metric):
        check_takes("metric", metric, "outputs")
    elif metric not in ("rms", "fisher"):
        raise UserError(
            f"metric must be 'rms', 'fisher', or a function of the outputs, got {metric!r}"
        )


def quantities(
    metric: Metric, outputs: PyTree, batch_size: int | None = None, valid: Valid = None
) -> jax.Array:
    """The quantities that a metric measures of outputs [B, ...], concatenated: [B, O].

    Args:
      metric: the metric.
      outputs: outputs of the network.
      batch_size: B, if the leading axis of the outputs has yet to be checked.
      valid: bool [B] or [B, T], what counts. The rest is 0, and what counts is scaled so that a
        mean square over all of an example is that over what counts.

    Raises:
      UserError: outputs that are no floating arrays with the batch in front.
    """
    whose = "the network"
    outputs = validity.keep(valid, outputs)
    if callable(metric):
        whose = "the metric"
        _check_batch_in_front(metric, outputs)
        outputs = validity.keep(valid, metric(outputs), "the metric's values")
    leaves = jax.tree.leaves(outputs)
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if not leaves or not all(
        jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves
    ):
        found = [str(jnp.result_type(leaf)) for leaf in leaves]
        raise UserError(
            f"{whose} must return arrays of real numbers, got {found or 'none'}: let it return "
            "only the outputs that count"
        )
    sizes = {shape[0] if shape else None for shape in shapes}
    if None in sizes or len(sizes) > 1 or (batch_size is not None and sizes != {batch_size}):
        of = "" if batch_size is None else f" of a batch of {batch_size}"
        raise UserError(f"{whose} must return outputs [B, ...], got shapes {shapes}{of}")
    if not any(map(math.prod, shapes)):
        raise UserError(f"{whose} returns nothing to compare: outputs {shapes} have no entries")
    flat = [leaf.reshape(leaf.shape[0], -1) for leaf in leaves]
    table = flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=1)
    return validity.evened(valid, table, outputs)


def _check_batch_in_front(metric: Callable[[PyTree], PyTree], outputs: PyTree) -> None:
    """Check that a metric returns more rows for more examples: B alone may match by chance."""

    def grown(leaf):
        return jax.ShapeDtypeStruct((leaf.shape[0] + 997, *leaf.shape[1:]), leaf.dtype)

    more = jax.tree.map(grown, outputs)
    shapes = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(metric, more))]
    wanted = jax.tree.leaves(more)[0].shape[0]
    if any(shape[:1] != (wanted,) for shape in shapes):
        raise UserError(
            f"the metric must return arrays [B, ...] for outputs [B, ...]; for {wanted} examples "
            f"it returns shapes {shapes}"
        )


def squared(metric: Metric, outputs: PyTree, along: jax.Array) -> jax.Array:
    """Compute squared attributions from changes of the quantities, [C, O, B] to [C, B].

    `"rms"`, or a function: `(1/O) Σ_o t_o²` of the outputs, or of what the function makes of them
    (section 2.2 of the paper). `"fisher"`: `(1/J) Σ_j (Σ_y p_y t_y² − (Σ_y p_y t_y)²)`, the Fisher
    norm of the J distributions `p = softmax(outputs)` of an example; of one logit, `p (1 − p) t²`.
    """
    along = widened(along)
    if metric != "fisher":
        return jnp.mean(jnp.square(along), axis=1)
    p = jnp.moveaxis(_probabilities(outputs), 0, -1)  # [J, K, B]
    t = jnp.where(p > 0, along.reshape(along.shape[0], *p.shape), 0.0)
    if p.shape[1] == 1:
        return jnp.mean(p * (1 - p) * jnp.square(t), axis=(1, 2))
    # The variance of t under p. It is a difference of two sums that can be nearly equal, so that
    # rounding may leave it slightly negative.
    spread = jnp.sum(p * jnp.square(t), axis=2) - jnp.square(jnp.sum(p * t, axis=2))
    return jnp.mean(jnp.maximum(spread, 0.0), axis=1)


def num_directions(metric: Metric, outputs: PyTree) -> int:
    """Number of directions of the metric, O."""
    return jax.eval_shape(lambda tree: quantities(metric, tree), outputs).shape[1]


def directions(metric: Metric, outputs: PyTree, index: jax.Array) -> jax.Array:
    """Some of the directions v of the metric, whose `Σ_v (v·t)²` is the squared attribution.

    Args:
      metric: the metric.
      outputs: outputs of the network, [B, ...].
      index: [n] numbers of the directions; a number past the last gives zeros.

    Returns:
      [n, B, O].
    """
    flat = quantities(metric, outputs)
    batch_size, width = flat.shape
    if metric != "fisher":
        basis = jax.nn.one_hot(index, width, dtype=flat.dtype) / jnp.sqrt(width).astype(flat.dtype)
        return jnp.broadcast_to(basis[:, None], (len(index), batch_size, width))
    p = _probabilities(outputs)
    _, count, classes = p.shape
    place, label = jnp.divmod(index, classes)
    # `Σ_y p_y (t_y − p·t)² = Σ_y (sqrt(p_y) (onehot(y) − p) · t)²`: one direction for every class y
    # of every distribution, of which this is number `place`.
    here = jax.nn.one_hot(place, count, dtype=p.dtype)[:, None, :, None]  # [n, 1, J, 1]
    own = jnp.take(p, label, axis=2).transpose(2, 0, 1)[..., None]  # p_y, [n, B, J, 1]
    if classes == 1:
        each = jnp.sqrt(own * (1 - own) / count)
    else:
        label_row = jax.nn.one_hot(label, classes, dtype=p.dtype)[:, None, None]
        each = jnp.sqrt(own / count) * (label_row - p)
    return (here * each).reshape(len(index), batch_size, width)


def probes(metric: Metric, key: jax.Array, outputs: PyTree, count: int) -> jax.Array:
    """Random directions [count, B, O] whose `Σ_v (v·t)²` is the squared attribution on average.

    For `"rms"`, random signs; for `"fisher"`, `onehot(y) − p` with y drawn from p.
    """
    flat = quantities(metric, outputs)
    batch_size, width = flat.shape
    if metric != "fisher":
        signs = randomness.signs(key, (count, batch_size, width), flat.dtype)
        return signs / jnp.sqrt(width * count).astype(flat.dtype)
    p = _probabilities(outputs)
    total, classes = p.shape[1], p.shape[2]
    if classes == 1:
        drawn = jax.random.bernoulli(key, p, (count, *p.shape)).astype(p.dtype)
    else:
        labels = jax.random.categorical(key, jnp.log(p), shape=(count, *p.shape[:2]))
        drawn = jax.nn.one_hot(labels, classes, dtype=p.dtype)
    return ((drawn - p) / jnp.sqrt(total * count)).reshape(count, batch_size, width)


def _probabilities(outputs: PyTree) -> jax.Array:
    """Probabilities [B, J, K] of logits [B, ..., K], without gradient."""
    leaves = jax.tree.leaves(outputs)
    if len(leaves) != 1 or leaves[0].ndim < 1:
        raise UserError(
            f"the Fisher metric needs one array of logits [B, ..., K], got {len(leaves)} outputs"
        )
    logits = jax.lax.stop_gradient(leaves[0].astype(jnp.float32))
    logits = logits.reshape(logits.shape[0], -1, logits.shape[-1] if logits.ndim > 1 else 1)
    if logits.shape[-1] == 1:
        return jax.nn.sigmoid(logits)
    return jax.nn.softmax(logits, axis=-1)
