"""The mesh of devices over which seeds are distributed."""

import os

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from apd_jax.errors import UserError

SEEDS = "seeds"


def num_shares(num_seeds: int, num_devices: int) -> int:
    """Return the largest number of devices, up to `num_devices`, that divides the seeds evenly."""
    return max(n for n in range(1, min(num_seeds, num_devices) + 1) if num_seeds % n == 0)


def seeds_mesh(num_seeds: int) -> Mesh | None:
    """Return a mesh that divides the seeds over devices, or None if one device has them all."""
    shares = num_shares(num_seeds, jax.device_count())
    if shares == 1:
        return None
    devices = np.array(jax.devices()[:shares])
    return Mesh(devices, (SEEDS,), axis_types=(AxisType.Auto,))


def split_cpu(num_seeds: int) -> None:
    """Split the CPU into several JAX devices, so that seeds are computed on separate cores.

    Small programs gain little from more than one core each. Call this before JAX computes anything.
    It has no effect on other backends, or if the user has set the number of devices.

    Raises:
      UserError: JAX has no device, for instance because JAX_PLATFORMS names a missing one.
    """
    chosen = "JAX_NUM_CPU_DEVICES" in os.environ
    if not chosen and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", num_shares(num_seeds, os.cpu_count() or 1))
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where a plugin is missing
        reason = " ".join(str(error).split()) or "its plugin is not installed"
        raise UserError(
            f"JAX finds no device: {reason} (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')!r})"
        ) from error
