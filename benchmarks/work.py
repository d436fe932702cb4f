"""The work of a traced program, and the least time that a machine needs for it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core

from apd_jax.programs.counts import operations_of


class Work(NamedTuple):
    """The work of a program.

    Attributes:
      operations: Floating-point operations of its matrix products; an addition and a
        multiplication count as two.
      bytes: Size of the arrays that it reads and returns.
    """

    operations: int
    bytes: int


def count(function: Callable[..., Any], *args: Any) -> Work:
    """Count the work of a function.

    The result is a lower bound: loops of unknown length count once, and of branches the cheapest
    counts.

    Args:
      function: A function that JAX can trace.
      *args: Arguments of the function; only those that it uses are counted as read.
    """
    closed = jax.make_jaxpr(function)(*args)
    used = {atom for eqn in closed.jaxpr.eqns for atom in eqn.invars if isinstance(atom, core.Var)}
    read = [var.aval for var in closed.jaxpr.invars if var in used]
    written = [atom.aval for atom in closed.jaxpr.outvars]
    size = sum(aval.size * aval.dtype.itemsize for aval in read + written)
    return Work(operations_of(closed.jaxpr), size)


def least_seconds(
    operations: float, size: float, operations_per_second: float, bytes_per_second: float
) -> float:
    """Return the floor of a stage: the longer of its matrix products and its memory traffic."""
    return max(operations / operations_per_second, size / bytes_per_second)
