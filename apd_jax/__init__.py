"""Attribution-based Parameter Decomposition in JAX."""

import importlib
import importlib.util
import typing

from apd_jax.programs import compiler_fault

__version__ = "0.3.0"

compiler_fault.avoid()

if typing.TYPE_CHECKING:
    from apd_jax.api import *  # noqa: F403


def __getattr__(name: str) -> typing.Any:
    """Import the public names on first use, so that `apd-jax --help` does not wait for them."""
    if name == "__all__":
        return importlib.import_module("apd_jax.api").__all__
    if not name.startswith("_") and importlib.util.find_spec(f"apd_jax.{name}"):
        return importlib.import_module(f"apd_jax.{name}")
    api = importlib.import_module("apd_jax.api")
    if name not in api.__all__:
        raise AttributeError(f"module 'apd_jax' has no attribute {name!r}")
    globals().update({public: getattr(api, public) for public in api.__all__})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *importlib.import_module("apd_jax.api").__all__})
