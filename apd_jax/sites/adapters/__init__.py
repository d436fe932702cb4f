"""Adapters: a model of a library as a pure function and its parameters, one file a library.

They only split a model into a function and parameters; sites are found in the traced program. A
library is imported when one of its models is given. The function `(params, x) -> outputs` has
`settings`, a JSON object that says how the model is called, `state`, a pytree of its fixed arrays,
and `with_state(state)`, so that the fixed arrays of a saved decomposition can be restored.
"""

import importlib
from typing import Any

from apd_jax.sites.adapters.fixed import Fixed

__all__ = ["Fixed", "adapter_of"]

# The package that a class of models comes from, and the file here that adapts it.
_FILES = {
    "flax.linen": "linen",
    "flax.nnx": "nnx",
    "equinox": "equinox",
    "torch": "torch",
}


def adapter_of(network: Any) -> Any:
    """The module of this folder that adapts a model; None where it is of no known library.

    Only the names of its classes are read, so that no library is imported without need.
    """
    for cls in type(network).__mro__:
        for package, file in _FILES.items():
            if cls.__module__ == package or cls.__module__.startswith(package + "."):
                return importlib.import_module(f"{__name__}.{file}")
    return None
