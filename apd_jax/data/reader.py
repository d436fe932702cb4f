"""The data as a training reads them: batches for its steps, and pools for what it does beside them.

Letters: B batch.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from absl import logging

from apd_jax import randomness
from apd_jax.data.source import Source
from apd_jax.sites import PyTree


class Reader:
    """Reads a source for one training.

    Args:
      source: the data.
      batch_size: B.
      seed: decides the pools.
    """

    def __init__(self, source: Source, batch_size: int, seed: int):
        self._source = source.with_batch_size(batch_size)
        self._batch_size, self._seed = batch_size, seed
        self._fed: tuple[int, int, PyTree] | None = None  # step, number of steps, what they read

    def pieces(self, step: int, length: int) -> Iterator[tuple[int, PyTree]]:
        """`Source.pieces`, of which the last one is kept."""
        for count, fed in self._source.pieces(step, length):
            self._fed = step, count, fed
            yield count, fed
            step += count

    def pool(self, step: int) -> PyTree:
        """The pool after some steps; see `Source.pool`."""
        with jax.ensure_compile_time_eval():  # resuming traces the first state for its shapes
            return self._source.pool(self._seed, step)

    def pool_at_end(self) -> PyTree:
        """A pool, or the last batches of the training where the data can't be read any more.

        It passes over no batches: a training may have been finished by an earlier call.
        """
        try:
            return self.pool(0)
        except Exception as error:
            if self._fed is None:
                raise
            logging.warning(
                "Restarts are compared, or gates limited, on the last batches of the training, as "
                "the data can't be read any more: %s",
                error,
            )
        first, count, fed = self._fed
        key = randomness.root(0)  # what is fed is not drawn
        batches = [
            self._source.batch(fed, jnp.int32(first + i), key, self._batch_size)
            for i in range(count)
        ]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *batches)
