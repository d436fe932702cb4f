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
    blocks = num_blocks(sites.batch_size(x), size)
    if blocks == 1:
        return jax.tree.map(lambda leaf: leaf[None], function(x))
    return jax.lax.map(function, divided(x, blocks))


def num_blocks(count: int, size: int | None) -> int:
    """How many blocks of nearly `size` examples `count` examples make: none is smaller than that.

    Args:
      count: N, number of examples.
      size: number of examples of a block; None for a single block of all.
    """
    return max(1, count // (size or count))


def divided(tree: PyTree, number: int) -> PyTree:
    """Arrays [N, ...] as `number` equal blocks, [n, N // n, ...], without what is left over."""

    def one(leaf):
        length = leaf.shape[0] // number
        return leaf[: number * length].reshape(number, length, *leaf.shape[1:])

    return jax.tree.map(one, tree)


def covered(count: int, size: int | None) -> int:
    """How many of `count` examples the blocks of `over_blocks` hold."""
    blocks = num_blocks(count, size)
    return blocks * (count // blocks)


def total(function: Callable[[PyTree], Any], x: PyTree, size: int | None) -> Any:
    """The sum of a function's values on the blocks of `over_blocks`.

    Args:
      function: function of a block [B, ...].
      x: [N, ...] examples.
      size: number of examples of a block; None for a single block of all.
    """
    blocks = num_blocks(sites.batch_size(x), size)
    return function(x) if blocks == 1 else summed(function, divided(x, blocks))


def summed(function: Callable[[Any], Any], each: PyTree) -> Any:
    """`Σ_i function(each_i)`, one after another, so that the values of only one are in memory.

    Args:
      function: function of one entry, with arrays as values.
      each: arrays [n, ...], whose entries along the first axis are passed.
    """
    first = jax.tree.map(lambda leaf: leaf[0], each)
    shapes = jax.eval_shape(function, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(sums, one):
        return jax.tree.map(jnp.add, sums, function(one)), None

    return jax.lax.scan(add, zeros, each)[0]


def joined(stacked: PyTree) -> PyTree:
    """Arrays of blocks, [n, B, ...], as [n·B, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), stacked)


def mean(values: PyTree, weights: jax.Array | None) -> PyTree:
    """Mean over blocks of values [n, ...], by weights [n] where these differ; 0 if all are 0."""
    if weights is None:
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), values)
    shares = weights / jnp.maximum(jnp.sum(weights), 1)
    return jax.tree.map(lambda leaf: jnp.tensordot(shares, leaf, axes=1), values)
