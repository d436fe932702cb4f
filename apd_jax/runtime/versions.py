"""What numbers depend on: versions of packages, and the machine."""

import os
import platform
from importlib import metadata
from typing import Any

import jax


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("apd_jax", "jax", "jaxlib", "flax", "optax", "numpy")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed (run from a checkout)"
    return found


def machine() -> dict[str, Any]:
    """What the run was computed on."""
    return {
        "platform": platform.platform(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cpu_cores": os.cpu_count(),
    }
