"""How far two computations of a network may be apart by rounding alone."""

import jax
import jax.numpy as jnp
from jax.extend import core

from apd_jax.sites import PyTree, Target

DIFFERENCE = 1e-3  # of the largest output, with numbers of float32
_UNITS = 8  # of rounding, where the network computes with narrower numbers than float32


def tolerance(target: Target, x: PyTree) -> float:
    """How far two computations of a network may be apart, in parts of its largest output."""
    return max(DIFFERENCE, _UNITS * _rounding(jax.make_jaxpr(target)(x).jaxpr))


def _rounding(jaxpr) -> float:
    """Unit of rounding of the narrowest real numbers in a program."""
    dtypes = {var.aval.dtype for eqn in jaxpr.eqns for var in eqn.outvars}
    units = [float(jnp.finfo(dtype).eps) for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    inner = [sub for eqn in jaxpr.eqns for sub in core.jaxprs_in_params(eqn.params)]
    return max([*units, *map(_rounding, inner)], default=0.0)
