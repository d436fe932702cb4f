"""Where seeds are computed: a mesh over devices, one slice of the seeds on each."""

import os

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from apd_jax.errors import UserError

SEEDS = "seeds"


def num_shares(num_seeds: int, num_devices: int) -> int:
    """The largest number of devices, at most `num_devices`, that the seeds divide over evenly."""
    return max(n for n in range(1, min(num_seeds, num_devices) + 1) if num_seeds % n == 0)


def seeds_mesh(num_seeds: int) -> Mesh | None:
    """A mesh that divides the seeds over devices, or None where one device has them all."""
    shares = num_shares(num_seeds, jax.device_count())
    if shares == 1:
        return None
    devices = np.array(jax.devices()[:shares])
    return Mesh(devices, (SEEDS,), axis_types=(AxisType.Auto,))


def split_cpu(num_seeds: int) -> None:
    """Offer the CPU to JAX as several devices, so that seeds are computed on cores of their own.

    Small programs gain little from more than one core each. To be called before JAX computes
    anything; no effect on other backends, or where the user has chosen a number.

    Raises:
      UserError: JAX has no device, as where JAX_PLATFORMS names one that isn't there.
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
