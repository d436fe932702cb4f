"""What the routes of gradient attributions share: blocks of a batch, and sums over directions.

Letters: B batch, T positions (one axis or several), C components, O outputs, n directions of the
outputs, L rows (B examples, or B·T positions of them).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from apd_jax import blocks, sites
from apd_jax.attribution import division, metrics, routes
from apd_jax.attribution.metrics import Metric
from apd_jax.attribution.options import Options
from apd_jax.attribution.routes import Linearised
from apd_jax.programs import partition
from apd_jax.sites import PyTree, Target
from apd_jax.validity import Valid

_DIRECTIONS = 128  # output directions that are pulled back at once
_PROBES = 16  # random directions that are pulled back at once


class Batch(NamedTuple):
    """Inputs [B, ...], keys of their probes (of a sketch) and what counts of them."""

    x: PyTree
    keys: jax.Array | None
    valid: Valid


def over_batch(
    options: Options,
    target: Target,
    count: int,
    x: PyTree,
    key: jax.Array | None,
    valid: Valid,
    function: Callable[[Batch], PyTree],
) -> PyTree:
    """Arrays [B, ...] of a function of a batch, in which examples don't meet.

    Args:
      options: how derivatives are taken.
      target: the network.
      count: number C of tangents of an output.
      x: [B, ...] inputs.
      key: PRNG key of a sketch.
      valid: what counts.
      function: function of a batch.
    """
    # Every example has its own key, so that its directions do not depend on its block.
    size = sites.batch_size(x)
    keys = None if key is None or options.mode != "sketch" else jax.random.split(key, size)

    def in_blocks(inputs, own=None, counted=None):
        number = 1
        if options.mode not in ("literal", "sketch"):
            width = metrics.num_directions(options.metric, jax.eval_shape(target, inputs))
            number = division.num_batch_blocks(sites.batch_size(inputs), count * width)
        if number == 1:
            return function(Batch(inputs, own, counted))
        parts = blocks.divided((inputs, counted), number)
        parts = partition.over_data(parts, blocks=True)
        return blocks.joined(
            jax.lax.map(lambda part: function(Batch(part[0], None, part[1])), parts)
        )

    with jax.default_matmul_precision("highest"):
        return sites.over_examples(in_blocks, target, x, keys, valid)


def squares(
    options: Options,
    target: Target,
    at: Linearised,
    batch: Batch,
    along: Callable[[Linearised, jax.Array], PyTree],
) -> PyTree:
    """`Σ_v (v·t)²` over the metric's directions v, arrays [C, L].

    Args:
      options: how derivatives are taken.
      target: the network.
      at: the network, linearised at the batch.
      batch: the batch.
      along: derivatives in directions [n, B, O] by pulling these back, arrays [n, L, C].
    """

    def pulled(directions):
        derivatives = averaged(options, target, at, batch, lambda at: along(at, directions))
        return jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf), axis=0).T, derivatives)

    if options.mode == "sketch":
        return _mean_of_probes(options, at.outputs, batch, pulled)
    width = metrics.num_directions(options.metric, at.outputs)
    # Pulling back all O directions at once needs their cotangents at every site at once. Squares
    # add up over directions, so that they can be taken in groups; those past the last are zeros.
    if width <= _DIRECTIONS:
        return pulled(metrics.directions(options.metric, at.outputs, jnp.arange(width)))
    starts = jnp.arange(0, width, _DIRECTIONS)
    some = jnp.arange(_DIRECTIONS)
    return blocks.summed(
        lambda start: pulled(metrics.directions(options.metric, at.outputs, start + some)), starts
    )


def _mean_of_probes(
    options: Options, outputs: PyTree, batch: Batch, pulled: Callable[[jax.Array], PyTree]
) -> PyTree:
    """Squared attributions by the sketch, its directions in groups to bound memory."""
    assert batch.keys is not None and options.num_probes is not None
    keys, total = batch.keys, options.num_probes
    if total <= _PROBES:
        return pulled(_probes(options.metric, outputs, keys, total))

    def group(number, size=_PROBES):
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        mean = pulled(_probes(options.metric, outputs, own, size))
        return jax.tree.map(lambda leaf: leaf * (size / total), mean)

    whole, rest = divmod(total, _PROBES)
    mean = blocks.summed(group, jnp.arange(whole))
    return jax.tree.map(jnp.add, mean, group(whole, rest)) if rest else mean


def averaged(
    options: Options,
    target: Target,
    at: Linearised,
    batch: Batch,
    along: Callable[[Linearised], PyTree],
) -> PyTree:
    """Derivatives at θ*, or their mean over `t·θ*` for t in (0, 1] (integrated gradients).

    The derivatives are averaged before they are squared: the squares of a mean, not their mean.
    """
    steps = options.integration_steps
    if steps == 1:
        return along(at)

    def scaled(t):
        there = target.with_weights({name: t * w for name, w in target.weights.items()})
        return along(
            routes.linearise(there, batch.x, options.metric, options.per_position, batch.valid)
        )

    total = blocks.summed(scaled, jnp.arange(1, steps + 1) / steps)
    return jax.tree.map(lambda leaf: leaf / steps, total)


def _probes(metric: Metric, outputs: PyTree, keys: jax.Array, count: int) -> jax.Array:
    """Draw random directions [count, B, O], those of an example from its own key."""

    def one(key, output):
        alone = jax.tree.map(lambda leaf: leaf[None], output)
        return metrics.probes(metric, key, alone, count)[:, 0]

    return jax.vmap(one, out_axes=1)(keys, outputs)


def root(squares: jax.Array) -> jax.Array:
    """Square roots with a gradient of 0 at 0; NaN stays NaN.

    The inner `where` keeps `sqrt` away from 0: its infinite slope there would turn the gradient of
    the branch that is not taken, 0 · ∞, into NaN.
    """
    return jnp.where(squares != 0, jnp.sqrt(jnp.where(squares != 0, squares, 1.0)), 0.0)
