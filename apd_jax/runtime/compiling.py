"""How hard the compiler is to try."""

import os

import jax

_LEVEL = "xla_backend_optimization_level"


def options_for_one_run() -> dict[str, int] | None:
    """Compiler options of a program that runs once.

    On CPUs LLVM's highest level takes seconds for every small array of random numbers, and gains
    nothing that a single run would notice. What the user chose in XLA_FLAGS stays.
    """
    if jax.default_backend() != "cpu" or _LEVEL in os.environ.get("XLA_FLAGS", ""):
        return None
    return {_LEVEL: 2}
