"""Settings of JAX around a run, kept from changing its numbers or from breaking it.

They come from environment variables or from the program that calls: a resumed run has to draw the
same numbers under any of them, and networks are written for JAX's own rules of promotion.
"""

import contextlib
from collections.abc import Iterator

import jax

from apd_jax.errors import UserError

KEYS = "threefry2x32"


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Run a block, or a decorated function, under settings of its own.

    Raises:
      UserError: keys are shifted by `jax_random_seed_offset`, which no block can undo.
    """
    if jax.config.jax_random_seed_offset:
        raise UserError(
            f"jax_random_seed_offset is {jax.config.jax_random_seed_offset} and would change every "
            "seed: unset JAX_RANDOM_SEED_OFFSET."
        )
    with (
        jax.default_prng_impl(KEYS),
        jax.threefry_partitionable(True),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.transfer_guard("allow"),
    ):
        yield
