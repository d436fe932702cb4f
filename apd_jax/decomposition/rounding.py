"""How far two computations of a network may be apart by rounding alone."""

import jax.numpy as jnp

from apd_jax.programs.equations import equations
from apd_jax.sites import PyTree, Target
from apd_jax.sites.program import trace

DIFFERENCE = 1e-3  # of the largest output, with numbers of float32
_UNITS = 8  # of rounding, where the network computes with narrower numbers than float32
# The same computation differs by less: most numbers are rounded to the same. With 8 units, numbers
# of 8 bits or fewer would hide everything.
_MOST = 0.0625  # 8 units of bfloat16
_MOST_UNITS = 2  # of rounding, of derivatives that are computed in two ways


def tolerance(target: Target, x: PyTree) -> float:
    """How far one computation of a network, run twice, may be apart.

    In parts of its largest output.
    """
    return max(DIFFERENCE, min(_UNITS * _unit(target, x), _MOST))


def derivative_tolerance(target: Target, x: PyTree) -> float:
    """The same for derivatives, where two computations round every number differently."""
    unit = _unit(target, x)
    return max(DIFFERENCE, min(_UNITS * unit, max(_MOST, _MOST_UNITS * unit)))


def _unit(target: Target, x: PyTree) -> float:
    """Unit of rounding of the narrowest real numbers that a network computes."""
    # The parameters are arguments, so that casts of them are part of the program.
    program = trace(target.apply_fn, target.params, x).closed.jaxpr
    dtypes = {var.aval.dtype for eqn in equations(program) for var in eqn.outvars}
    units = [float(jnp.finfo(dtype).eps) for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    return max(units, default=0.0)
