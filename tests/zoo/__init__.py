"""Networks of every kind, and what is expected of each: `NETWORKS` and `REFUSED`."""

from zoo import (
    attention,
    convolutions,
    equinox_modules,
    linen,
    nnx_modules,
    plain,
    programs,
    recurrent,
    refused,
    unusual,
)
from zoo.network import NETWORKS, REFUSED, Network, Refused

__all__ = [
    "NETWORKS",
    "REFUSED",
    "Network",
    "Refused",
    "attention",
    "convolutions",
    "equinox_modules",
    "linen",
    "nnx_modules",
    "plain",
    "programs",
    "recurrent",
    "refused",
    "unusual",
]
