"""One entry of the zoo, the table it stands in, and how its parameters and inputs are drawn.

Letters: B examples, T positions.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
B, T, VOCABULARY = 3, 4, 5


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, and what a person who reads its code expects of its sites.

    Attributes:
      apply_fn: (params, inputs [B, ...]) -> outputs [B, ...], for any B.
      params: pytree of arrays.
      inputs: pytree of arrays with B examples.
      sites: {name: (d_in, d_out)}, or (G, d_in, d_out) where the product has a batch axis.
      select: what to pass as `sites=`; all that are found if None.
      by_position: the same network written so that every leaf that is a site may also be
        [B, T, ...], one matrix for every position; None where there are no positions.
      tolerance: of values, relative to the largest.
    """

    apply_fn: Callable[[PyTree, PyTree], PyTree]
    params: PyTree
    inputs: PyTree
    sites: dict[str, tuple[int, ...]]
    select: Any = None
    by_position: Callable[[PyTree, PyTree], PyTree] | None = None
    tolerance: float = 1e-4


@dataclasses.dataclass(frozen=True)
class Refused:
    """A network with a parameter that can't be decomposed.

    Attributes:
      apply_fn, params, inputs: as in `Network`.
      select: what is asked for.
      message: regular expression of the error.
      leaf: the parameter that has to be listed as no site; None where the error is another.
    """

    apply_fn: Callable[[PyTree, PyTree], PyTree]
    params: PyTree
    inputs: PyTree
    select: Any
    message: str
    leaf: str | None = None


class Table(dict):
    """{name: function that builds the entry}; an entry is built when first asked for."""

    def entry(self, build: Callable[[], Any]) -> Callable[[], Any]:
        """Decorate a function whose name is the entry's."""
        if build.__name__ in self:
            raise ValueError(f"two entries are called {build.__name__!r}")
        self[build.__name__] = functools.lru_cache(build)
        return build


NETWORKS, REFUSED = Table(), Table()


def normal(*shape: int, seed: int | str = 0, scale: float = 1.0) -> jax.Array:
    """Normal float32 array."""
    seed = zlib.crc32(seed.encode()) if isinstance(seed, str) else seed
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def weights(**shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    """`{name: normal array of this shape}`, each drawn from its name."""
    return {name: normal(*shape, seed=name, scale=0.7) for name, shape in shapes.items()}


def drawn(tree: PyTree) -> PyTree:
    """Fill every array of a tree (or what stands for its shape) with normal numbers."""
    leaves, structure = jax.tree.flatten(tree)
    filled = [normal(*leaf.shape, seed=i, scale=0.7) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, filled)


def tokens(*shape: int) -> jax.Array:
    """Whole numbers below VOCABULARY."""
    return jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, shape), jnp.int32)


def layer_norm(x: jax.Array) -> jax.Array:
    """Normalise the last axis, without parameters."""
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)


def per_position(x: jax.Array, w: jax.Array) -> jax.Array:
    """`x w` for x [B, T, d_in]; w is [d_in, d_out], or has leading axes [B, T] of its own."""
    return jnp.einsum("btd,btdf->btf", x, jnp.broadcast_to(w, (*x.shape[:2], *w.shape[-2:])))
