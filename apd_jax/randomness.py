"""The random streams of a run: one root key per seed, and a number for every use of randomness.

Keys are never split in sequence. A stream depends on its seed, its number and its step only, so
resuming, chunk sizes and other seeds do not change it, and a new stream does not change the others.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.programs.jax_settings import KEYS

# Numbers that are folded into the root key. Numbers below 2**31 are reserved for the steps.
_STREAMS = {
    "target parameters": 2**31,
    "target loss": 2**31 + 1,
    "components": 2**31 + 2,
    "evaluation": 2**31 + 3,
    "probes": 2**31 + 4,
    "loss scales": 2**31 + 5,
    "restarts": 2**31 + 6,
    "start": 2**31 + 7,
    "order of the data": 2**31 + 8,
    "examples": 2**31 + 9,
    "zero terms": 2**31 + 10,
    "gates": 2**31 + 11,
    "eigenbasis": 2**31 + 12,
    "evidence": 2**31 + 20,
    "shuffled matrices": 2**31 + 21,
    "evidence inputs": 2**31 + 22,
}
# Numbers that are folded into the key of a step; the last two into the key of its attributions, or
# of those of a round of refinement.
_STREAMS_OF_A_STEP = {
    "target batch": 0,
    "batch": 1,
    "attribution": 2,
    "round batch": 3,
    "round attribution": 4,
    "round factors": 5,
    "partial masks": 6,
    "sketch directions": 7,
    "other": 8,
    "other batch": 9,
}


def root(seed: int | np.integer | jax.Array) -> jax.Array:
    """The root key of a seed, from which all its streams derive."""
    return jax.random.key(seed, impl=KEYS)


def stream(seed: int | np.integer | jax.Array, name: str) -> jax.Array:
    """The key of a named stream of a seed."""
    return jax.random.fold_in(root(seed), _STREAMS[name])


def step_key(root_key: jax.Array, step: int | jax.Array) -> jax.Array:
    """The key of a step; steps are counted from 0."""
    return jax.random.fold_in(root_key, step)


def stream_of_step(key: jax.Array, name: str) -> jax.Array:
    """The key of a named stream of a step, given the step's key."""
    return jax.random.fold_in(key, _STREAMS_OF_A_STEP[name])


def signs(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Draw random signs, +1 and -1 with equal probability.

    A sign is one bit. `jax.random.rademacher` draws 32 bits for each, which takes longer than what
    sketches do with them.
    """
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32),), jnp.uint32)
    bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return (1 - 2 * bits.reshape(-1)[:size].astype(jnp.int8)).astype(dtype).reshape(shape)


def permutation(key: jax.Array, count: int) -> np.ndarray:
    """A random order of `count` rows on the host, int32 [count], that of `jax.random.permutation`.

    Rows are sorted by random numbers, so often that hardly two rows have equal numbers each time.
    NumPy sorts faster than XLA on CPUs, in less memory, and without compiling a program for every
    `count`.

    Args:
      key: decides the order.
      count: fewer than 2**31.
    """
    order = np.arange(count, dtype=np.int32)
    places = np.arange(count, dtype=np.uint64)
    rounds = math.ceil(3 * math.log(max(1, count)) / math.log(2**32 - 1))
    for _ in range(rounds):
        key, of_round = jax.random.split(key)
        numbers = np.asarray(jax.random.bits(of_round, (count,), np.uint32)).astype(np.uint64)
        numbers <<= 32
        numbers |= places  # equal numbers keep their order
        numbers.sort()
        numbers &= 2**32 - 1
        order = order[numbers.view(np.int64)]
    return order
