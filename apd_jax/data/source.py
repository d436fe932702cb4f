"""The interface of all sources of batches.

Letters: B batch.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from apd_jax.sites import PyTree

SampleBatch = Callable[[jax.Array, int], PyTree]
MOST_BYTES = 32 * 2**20  # that are read from the data at a time
_LEAST_EXAMPLES = 64  # number of examples that are read, however large they are
POOL = 4096  # number of examples that are read for computations outside of the steps


class Source:
    """Gives batches.

    Attributes:
      feeds: whether steps read what `feed` returns, in addition to their context.
      fresh: whether the training never sees `examples`.
      repeats: whether `examples` are the same in every process, which `describe` does not say.
      hint: what to try if the network refuses the examples, or "".
    """

    feeds = True
    fresh = False
    repeats = False
    hint = ""

    def sizes(self) -> dict[str, int]:
        """Settings that the data decide, such as the size of batches that come ready-made."""
        return {}

    def check(self, batch_size: int) -> None:
        """Raise UserError unless the data give fresh batches of this size."""

    def with_batch_size(self, batch_size: int) -> "Source":
        """The same source, whose `feed` and `pieces` give batches of this size."""
        return self

    def feed(self, step: int, length: int) -> PyTree:
        """What the steps from `step` to `step + length` read."""

    def most_steps(self) -> int | None:
        """How many steps' batches are fed at a time at most; None for any number."""
        return None

    def pieces(self, step: int, length: int) -> Iterator[tuple[int, PyTree]]:
        """What the steps from `step` to `step + length` read, divided to bound the memory.

        Yields:
          `(count, fed)`: `fed` is for the next `count` steps. All counts are the same, so that one
          compiled program serves them.
        """
        most = self.most_steps() or length
        count = max(n for n in range(1, min(most, length) + 1) if length % n == 0)
        for start in range(step, step + length, count):
            yield count, self.feed(start, count)

    def batch(self, fed: PyTree, step: jax.Array, key: jax.Array, batch_size: int) -> PyTree:
        """The batch of a step, [B, ...], from what was fed; traced."""

    def again(self) -> "Source":
        """The same data from the beginning, for another training.

        Raises:
          UserError: data that are given once.
        """
        return self

    def examples(self, seed: int, count: int) -> PyTree:
        """At most `count` examples to look at, which the training may see too.

        Fewer where examples are so large that `count` of them exceed `MOST_BYTES`.
        """

    def describe(self) -> str:
        """What the data are, for the config of a directory."""
        return type(self).__name__

    def pool(self, seed: int, step: int) -> PyTree:
        """What `sample` draws from after `step` steps; None where a function draws.

        Every step has its own pool, as rare examples are missing in most of them. A resumed
        training gets the same pool again.
        """

    def sample(self, pool: PyTree, key: jax.Array, count: int) -> PyTree:
        """Examples [count, ...] for computations outside of the steps; traced."""
        size = jax.tree.leaves(pool)[0].shape[0]
        on_device = jax.tree.map(jnp.asarray, pool)  # traced numbers can't index NumPy's
        return take(on_device, jax.random.randint(key, (count,), 0, size))


def take(tree: PyTree, rows: Any) -> PyTree:
    """Some of the rows of every array."""
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def affordable(count: int, bytes_each: int) -> int:
    """How many of `count` examples are read."""
    return min(count, max(_LEAST_EXAMPLES, MOST_BYTES // max(bytes_each, 1)))
