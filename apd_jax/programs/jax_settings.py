"""JAX settings that a run fixes, so that the caller's settings neither change nor break it.

Such settings come from environment variables or from the calling program. A resumed run must draw
the same random numbers under any of them, and networks expect JAX's default promotion rules.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from apd_jax.errors import UserError

KEYS = "threefry2x32"


def check_key(key: Any) -> None:
    """Raise UserError for what is no PRNG key, of `jax.random.key` or `jax.random.PRNGKey`."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    words = dtype == np.uint32 and len(shape or ()) == 1
    if not isinstance(key, jax.Array | np.ndarray) or not (
        words or (jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) and shape == ())
    ):
        raise UserError(f"key must be a PRNG key, jax.random.key(0), got {key!r:.100}")


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
