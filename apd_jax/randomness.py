"""The random streams of a run: one root key a seed, and a number for everything that draws.

No key is split on the way: a stream depends on its seed, its number and its step alone, so that
resuming, chunks and the other seeds change nothing, and a new stream leaves the others as they are.
"""

import jax

from apd_jax.jax_settings import KEYS

# Folded into the root key; the numbers below 2**31 are those of the steps.
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
    "evidence": 2**31 + 20,
    "shuffled matrices": 2**31 + 21,
}
# Folded into the key of a step; the last two into that of its attributions, or of a round's.
_STREAMS_OF_A_STEP = {
    "target batch": 0,
    "batch": 1,
    "attribution": 2,
    "round batch": 3,
    "round attribution": 4,
    "round factors": 5,
    "stochastic masks": 6,
    "sketch directions": 7,
}


def root(seed: int | jax.Array) -> jax.Array:
    """The key that all streams of a seed come from."""
    return jax.random.key(seed, impl=KEYS)


def stream(seed: int | jax.Array, name: str) -> jax.Array:
    """The key of one of the streams of a seed."""
    return jax.random.fold_in(root(seed), _STREAMS[name])


def step_key(root_key: jax.Array, step: int | jax.Array) -> jax.Array:
    """The key of a step, counted from 0."""
    return jax.random.fold_in(root_key, step)


def stream_of_step(key: jax.Array, name: str) -> jax.Array:
    """The key of one of the streams of a step, from the step's key."""
    return jax.random.fold_in(key, _STREAMS_OF_A_STEP[name])
