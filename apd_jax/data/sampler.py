"""Batches drawn by a function."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import randomness
from apd_jax.config_fields import check_takes
from apd_jax.data.source import SampleBatch, Source
from apd_jax.errors import UserError
from apd_jax.sites import PyTree

_DRAWS = 4


class Sampler(Source):
    """Batches drawn by a function of (key, batch_size), traced by JAX."""

    feeds = False
    fresh = True
    repeats = True

    def __init__(self, sample: SampleBatch):
        if inspect.isgeneratorfunction(sample):
            raise UserError(
                "data is a function that makes a generator: call it, data=f(), or give an object "
                "whose __iter__ it is"
            )
        check_takes("data", sample, "key", "batch_size")
        self._function = sample

    def _sample(self, key: jax.Array, batch_size: int) -> PyTree:
        """Draw a batch, and refuse what is none."""
        x = self._function(key, batch_size)
        leaves = jax.tree.leaves(x)
        if not leaves or not all(hasattr(leaf, "shape") for leaf in leaves):
            raise UserError(
                "the sampling function must give arrays [B, ...], or a dict, tuple or other pytree "
                f"of them; it gave {type(x).__name__}"
            )
        shapes = [leaf.shape for leaf in leaves]
        if any(shape[:1] != (batch_size,) for shape in shapes):
            raise UserError(
                f"asked for {batch_size} examples, the sampling function gave arrays of shapes "
                f"{shapes}; every array must have {batch_size} rows"
            )
        return x

    def check(self, batch_size):
        keys = jax.vmap(randomness.root)(jnp.arange(_DRAWS, dtype=jnp.uint32))
        draw = jax.jit(jax.vmap(lambda key: self._sample(key, batch_size)))  # as for seeds
        try:
            batches = draw(keys)
        except (jax.errors.JAXTypeError, NotImplementedError) as error:
            raise UserError(
                "the sampling function must be traceable by JAX, but is not "
                f"({_first_line(error)}): draw with jax.random from the key, or give arrays or an "
                "iterable of batches"
            ) from error
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(batches)]
        if all(np.array_equal(leaf[:1].repeat(_DRAWS, axis=0), leaf) for leaf in leaves):
            raise UserError(
                "the sampling function gives the same batch for every key, so that training would "
                "see one batch only: draw from the key, or give the arrays or the iterator itself "
                "as data"
            )

    def batch(self, fed, step, key, batch_size):
        return self._sample(key, batch_size)

    def examples(self, seed, count):
        return self._sample(randomness.stream(np.uint32(seed), "examples"), count)

    def sample(self, pool, key, count):
        return self._sample(key, count)

    def describe(self):
        return "sampling function"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
