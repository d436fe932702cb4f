"""Examples in blocks, one after another, so that memory follows the size of a block."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from apd_jax import sites
from apd_jax.sites import PyTree

_MOST = 256  # blocks of the size of a training batch that are looked at beside the steps


def affordable(count: int, size: int, most: int = _MOST) -> int:
    """How many of `count` examples are looked at: those of `most` blocks, so that time is bounded.

    Args:
      count: number of examples that is wanted.
      size: number of examples of a block.
      most: number of blocks.
    """
    return min(count, most * size)


def over_blocks(function: Callable[[PyTree], Any], x: PyTree, size: int | None) -> Any:
    """The values of a function on nearly `size` examples each, stacked, `[n, ...]`.

    Examples are divided into `n = max(1, N // size)` blocks of the same length; the few that are
    left over are not used.

    Args:
      function: function of a block [B, ...].
      x: [N, ...] examples.
      size: number of examples of a block; None for a single block of all.
    """
    count = sites.batch_size(x)
    number = max(1, count // (size or count))
    if number == 1:
        return jax.tree.map(lambda leaf: leaf[None], function(x))
    return jax.lax.map(function, divided(x, number))


def divided(tree: PyTree, number: int) -> PyTree:
    """Arrays [N, ...] as `number` equal blocks, [n, N // n, ...], without what is left over."""

    def one(leaf):
        length = leaf.shape[0] // number
        return leaf[: number * length].reshape(number, length, *leaf.shape[1:])

    return jax.tree.map(one, tree)


def covered(count: int, size: int | None) -> int:
    """How many of `count` examples the blocks of `over_blocks` hold."""
    number = max(1, count // (size or count))
    return number * (count // number)


def total(function: Callable[[PyTree], Any], x: PyTree, size: int | None) -> Any:
    """The sum of a function's values on the blocks of `over_blocks`.

    Args:
      function: function of a block [B, ...].
      x: [N, ...] examples.
      size: number of examples of a block; None for a single block of all.
    """
    number = max(1, sites.batch_size(x) // (size or sites.batch_size(x)))
    if number == 1:
        return function(x)
    parts = divided(x, number)
    shapes = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(
        lambda sums, part: (jax.tree.map(jnp.add, sums, function(part)), None), zeros, parts
    )[0]


def joined(stacked: PyTree) -> PyTree:
    """Arrays of blocks, [n, B, ...], as [n·B, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), stacked)


def mean(values: PyTree, weights: jax.Array | None) -> PyTree:
    """Mean over blocks of values [n, ...], by weights [n] where these differ; 0 if all are 0."""
    if weights is None:
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), values)
    shares = weights / jnp.maximum(jnp.sum(weights), 1)
    return jax.tree.map(lambda leaf: jnp.tensordot(shares, leaf, axes=1), values)
