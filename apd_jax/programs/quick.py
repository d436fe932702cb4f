"""Quick compilation, on CPUs, of programs that run a few times.

LLVM takes seconds to optimise a program that then runs for milliseconds, as the first state, a
round of refinement and the evidence of a small network do. At a lower level, and with the older of
XLA's two ways to emit kernels, such a program is compiled in about two thirds of the time, with the
same numbers up to rounding. Level 0 compiles faster still, but gradients of convolutions in a loop
then take twenty times as long.

What the environment variable XLA_FLAGS says of the same options holds for these programs too.
"""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Numbers in the parameters of a network, and in all else that a program reads, below which
# compiling takes longer than running.
_SMALL, _FEW = 2**12, 2**17
_OPTIONS = {"xla_backend_optimization_level": 2, "xla_cpu_use_fusion_emitters": False}


def options(parameters: Any, others: Any = ()) -> dict[str, Any]:
    """Compiler options for a program that runs a few times; none where it should be optimised.

    Args:
      parameters: those of the networks that the program reads, a pytree of arrays or their shapes.
      others: what else it reads, if that bounds how long it runs.
    """
    small = _size(parameters) <= _SMALL and _size(others) <= _FEW
    if not small or jax.default_backend() != "cpu":
        return {}
    # A program that is part of another, or is differentiated, can't have options of its own.
    within_another = isinstance(jnp.zeros(()), jax.core.Tracer)
    return {} if within_another or _is_traced((parameters, others)) else _known()


def _size(tree: Any) -> int:
    return sum(np.size(leaf) for leaf in jax.tree.leaves(tree))


def _is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


@functools.cache
def _known() -> dict[str, Any]:
    """Those of the options that the caller left open, and that this version of XLA knows.

    XLA refuses programs with an option that it does not know.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    given = {flag.removeprefix("--").partition("=")[0] for flag in flags}
    return {
        name: value
        for name, value in _OPTIONS.items()
        if name not in given and _is_known(name, value)
    }


def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value})()
    except jax.errors.JaxRuntimeError:
        return False
    return True
