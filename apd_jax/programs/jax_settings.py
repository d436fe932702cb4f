"""JAX settings that a run fixes, so that the caller's settings neither change nor break it.

Such settings come from environment variables or from the calling program. A resumed run must draw
the same random numbers under any of them, and networks expect JAX's default promotion rules.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from apd_jax.errors import UserError

KEYS = "threefry2x32"


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Run a block, or a decorated function, under fixed JAX settings.

    Raises:
      UserError: `jax_random_seed_offset` is set, which shifts all keys and cannot be overridden.
    """
    config: Any = jax.config  # whose types omit the settings
    if offset := config.jax_random_seed_offset:
        raise UserError(
            f"jax_random_seed_offset is {offset} and would change every seed: unset "
            "JAX_RANDOM_SEED_OFFSET."
        )
    with (
        jax.default_prng_impl(KEYS),
        jax.threefry_partitionable(True),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.transfer_guard("allow"),
        jax.disable_jit(False),
    ):
        yield
