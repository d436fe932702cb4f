"""Adapters: a model of a library as a pure function and its parameters, one file a library.

They only split a model in two; sites are found in the traced program all the same. A library is
imported when a model of it is given. What an adapter returns as the function is an `Adapted`, so
that a saved decomposition can be put back into the network that is code.
"""

import importlib
from typing import Any

from apd_jax.sites.adapters.fixed import Adapted, Fixed

__all__ = ["Adapted", "Fixed", "adapter_of"]

# The package that a class of models comes from, and the file here that adapts it.
_FILES = {
    "flax.linen": "linen",
    "flax.nnx": "nnx",
    "equinox": "equinox",
    "torch": "torch",
}


def adapter_of(network: Any) -> Any:
    """The module of this folder that adapts a model; None where it is of no known library.

    Only the names of its classes are looked at, so that no library is imported in vain.
    """
    for cls in type(network).__mro__:
        for package, file in _FILES.items():
            if cls.__module__ == package or cls.__module__.startswith(package + "."):
                return importlib.import_module(f"{__name__}.{file}")
    return None
