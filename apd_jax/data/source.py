"""What all sources of batches share.

Letters: B batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.errors import UserError
from apd_jax.sites import PyTree

SampleBatch = Callable[[jax.Array, int], PyTree]
_POOL = 4096


class Source:
    """Gives batches.

    Attributes:
      feeds: whether steps read what `feed` gives, besides their context.
      repeats: whether `examples` are the same in every process, which `describe` does not say.
    """

    feeds = True
    repeats = False

    def sizes(self) -> dict[str, int]:
        """Settings that the data decide, such as the size of batches that come ready-made."""
        return {}

    def check(self, batch_size: int) -> None:
        """Raise UserError unless the data give fresh batches of this size."""

    def feed(self, step: int, length: int) -> PyTree:
        """What the steps from `step` on to `step + length` read."""

    def batch(self, fed: PyTree, step: jax.Array, key: jax.Array, batch_size: int) -> PyTree:
        """The batch of a step, [B, ...], from what was fed; traced."""

    def again(self) -> "Source":
        """The same from its beginning, for another training.

        Raises:
          UserError: data that are given once.
        """
        return self

    def examples(self, seed: int, count: int) -> PyTree:
        """At most `count` examples to look at, which the training may see too."""

    def describe(self) -> str:
        """What the data are, for the config of a directory."""
        return type(self).__name__

    def draw(self, seed: int) -> SampleBatch:
        """A function `(key, count) -> x` that JAX can trace, for what is no step of the training.

        Data that are not drawn at random give examples out of a pool of them.
        """

        def sample(key: jax.Array, count: int) -> PyTree:
            with jax.ensure_compile_time_eval():  # the pool is data, and no part of a program
                pool = self.examples(seed, _POOL)
            size = jax.tree.leaves(pool)[0].shape[0]
            return take(pool, jax.random.randint(key, (count,), 0, size))

        return sample


def as_array(leaf: Any) -> jax.Array | np.ndarray:
    """An array of numbers of JAX's width, all finite."""
    array = np.asarray(leaf)
    if not (array.dtype.kind in "biu" or jnp.issubdtype(array.dtype, jnp.inexact)):
        raise UserError(f"data must be numbers, got an array of {array.dtype}")
    if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all():
        raise UserError("data hold NaN or infinity: leave such examples out")
    return jnp.asarray(array)


def take(tree: PyTree, rows: Any) -> PyTree:
    """Some of the rows of every array."""
    return jax.tree.map(lambda leaf: leaf[rows], tree)
