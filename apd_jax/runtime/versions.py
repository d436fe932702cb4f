"""Versions of packages and a description of the machine, for the record of a run."""

import os
import platform
from importlib import metadata
from typing import Any

import jax

import apd_jax


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    found = {"python": platform.python_version(), "apd_jax": apd_jax.__version__}
    return found | {package: version(package) for package in packages}


def version(package: str) -> str:
    """The version of a package, or that it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, Any]:
    """Platform, devices and number of CPU cores."""
    return {
        "platform": platform.platform(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cpu_cores": os.cpu_count(),
    }
