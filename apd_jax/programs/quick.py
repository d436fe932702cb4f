"""Quick compilation, on CPUs, of programs that run a few times.

LLVM takes seconds to optimise a program that then runs for milliseconds, as the first state, a
round of refinement and the evidence of a small network do. Without optimisation, and with the older
of XLA's two ways to emit kernels, such a program is compiled in about half of the time, with the
same numbers up to rounding. Gradients of convolutions in a loop would then take twenty times as
long, and rounds of a network with attention and 1,700 parameters a third longer. So networks with
convolutions, larger networks and more data get level 2, which spares a third. A level that the
environment variable XLA_FLAGS names is kept.
"""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Numbers in the parameters of a network, and in all else that a program reads, up to which
# compiling takes longer than running; and those up to which it does so without optimisation.
_SMALL, _FEW = 2**12, 2**17
_TINY, _VERY_FEW = 2**9, 2**14
_LEVEL = "xla_backend_optimization_level"
_OLDER_KERNELS = {"xla_cpu_use_fusion_emitters": False}
_SOME, _NONE = {_LEVEL: 2} | _OLDER_KERNELS, {_LEVEL: 0} | _OLDER_KERNELS


def options(network: Any, others: Any = ()) -> dict[str, Any]:
    """Compiler options for a program that runs a few times; none where it should be optimised.

    Args:
      network: what the program reads of networks, a pytree of arrays or their shapes; a `Target`
        also tells whether there are convolutions.
      others: what else it reads, if that bounds how long it runs.
    """
    small = _size(network) <= _SMALL and _size(others) <= _FEW
    if not small or jax.default_backend() != "cpu" or _level_is_chosen():
        return {}
    # A program that is part of another, or is differentiated, can't have options of its own.
    within_another = isinstance(jnp.zeros(()), jax.core.Tracer)
    if within_another or _is_traced((network, others)):
        return {}
    tiny = _size(network) <= _TINY and _size(others) <= _VERY_FEW
    chosen = _NONE if tiny and not getattr(network, "convolves", True) else _SOME
    return {name: value for name, value in chosen.items() if _is_known(name, value)}


def _level_is_chosen() -> bool:
    return _LEVEL in os.environ.get("XLA_FLAGS", "")


def _size(tree: Any) -> int:
    return sum(np.size(leaf) for leaf in jax.tree.leaves(tree))


def _is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    """Whether this version of XLA knows an option: it refuses programs with any other."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value})()
    except jax.errors.JaxRuntimeError:
        return False
    return True
