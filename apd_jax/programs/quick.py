"""Quick compilation, on CPUs, of programs that run a few times.

LLVM takes seconds to optimise a program that then runs for milliseconds, as the first state and a
round of refinement of a small network do. Without optimisation such a program is compiled in a
quarter of the time and runs half as fast, with the same numbers up to rounding.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

_SMALL = 4096  # parameters of a network, below which compiling takes longer than running
_OPTIONS = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def options(context: Any) -> dict[str, Any]:
    """Compiler options for a program that runs a few times; none where it should be optimised.

    Args:
      context: the parameters that the program reads, a pytree of arrays or of their shapes.
    """
    small = sum(leaf.size for leaf in jax.tree.leaves(context)) <= _SMALL
    # While JAX traces, for the shapes of a state, programs are parts of others, without options.
    traced = isinstance(jnp.zeros(()), jax.core.Tracer)
    return _known() if small and not traced and jax.default_backend() == "cpu" else {}


@functools.cache
def _known() -> dict[str, Any]:
    """Those of the options that this version of XLA knows: it refuses programs with any other."""
    return {name: value for name, value in _OPTIONS.items() if _is_known(name, value)}


def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value})()
    except jax.errors.JaxRuntimeError:
        return False
    return True
