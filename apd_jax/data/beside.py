"""Batches of a targeted decomposition: examples of its data and of the other data.

Letters: B batch.
"""

from typing import Any

from apd_jax import errors, randomness
from apd_jax.data.source import Source


class Beside(Source):
    """Batches `(x, other)` of two sources; only training steps use the second source."""

    def __init__(self, data: Source, other: Source):
        self._data, self._other = data, other
        self.repeats, self.hint, self.fresh = data.repeats, data.hint, data.fresh

    def sizes(self):
        return self._data.sizes()

    def check(self, batch_size):
        self._data.check(batch_size)
        with errors.about("other"):
            self._other.check(batch_size)

    def with_batch_size(self, batch_size):
        both = (source.with_batch_size(batch_size) for source in (self._data, self._other))
        return Beside(*both)

    def feed(self, step, length):
        data = self._data.feed(step, length)
        with errors.about("other"):
            return {"data": data, "other": self._other.feed(step, length)}

    def most_steps(self):
        both = self._data.most_steps(), self._other.most_steps()
        return min((most for most in both if most is not None), default=None)

    def batch(self, fed, step, key, batch_size):
        x = self._data.batch(fed["data"], step, key, batch_size)
        other_key = randomness.stream_of_step(key, "other batch")
        return x, self._other.batch(fed["other"], step, other_key, batch_size)

    def again(self):
        return Beside(self._data.again(), self._other.again())

    def examples(self, seed, count):
        return self._data.examples(seed, count)

    def other_examples(self, seed: int, count: int) -> Any:
        """At most `count` examples of the other data; see `Source.examples`."""
        return self._other.examples(seed, count)

    def pool(self, seed, step):
        return self._data.pool(seed, step)

    def sample(self, pool, key, count):
        return self._data.sample(pool, key, count)

    def describe(self):
        return f"{self._data.describe()}; other: {self._other.describe()}"
