"""Whether a custom derivative is the derivative of the equations that it stands around.

The interpreter replaces such a function by the equations inside it where a parameter goes in. A
rule that gives another derivative, as straight-through rounding does, would be lost.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from apd_jax.sites.closeness import close

_SIZES = (1.0, 100.0)  # of what is pulled back: a rule that clips shows at one of them
_TOLERANCE = 1e-3
_HALF = 0.05  # where anything is narrower than float32


def keeps_derivative(eqn: Any, inside: core.ClosedJaxpr) -> bool:
    """Compare gradients by the rule and by the equations inside, on random numbers.

    Args:
      eqn: an equation with a custom derivative.
      inside: the program inside it.

    Returns:
      Whether they are the same; false, too, where one of the two has no gradient.
    """
    avals = [var.aval for var in eqn.invars]
    if any(jnp.issubdtype(aval.dtype, jax.dtypes.extended) for aval in avals):
        return False
    drawn = np.random.default_rng(0)
    values = [_draw(drawn, aval) for aval in avals]
    real = [i for i, aval in enumerate(avals) if jnp.issubdtype(aval.dtype, jnp.inexact)]
    params = eqn.primitive.get_bind_params(eqn.params)
    by_rule = lambda *args: eqn.primitive.bind(*args, **params)  # noqa: E731
    by_equations = core.jaxpr_as_fun(inside)
    dtypes = [var.aval.dtype for var in (*eqn.invars, *eqn.outvars)]
    narrow = any(jnp.issubdtype(d, jnp.inexact) and jnp.finfo(d).bits < 32 for d in dtypes)
    try:
        with jax.ensure_compile_time_eval():
            first = _gradients(by_rule, values, real)
            second = _gradients(by_equations, values, real)
    except Exception:  # whatever a rule says to random numbers, or to have no gradient
        return False
    pairs = zip(first, second, strict=True)
    return all(close(a, b, _HALF if narrow else _TOLERANCE) for a, b in pairs)


def _draw(drawn: np.random.Generator, aval: Any) -> np.ndarray:
    real = jnp.issubdtype(aval.dtype, jnp.inexact)
    return np.asarray(drawn.normal(size=aval.shape) if real else np.zeros(aval.shape), aval.dtype)


def _gradients(function: Callable, values: Sequence[Any], real: Sequence[int]) -> list[jax.Array]:
    """Gradients of random combinations of the real results, for each of the sizes."""

    def results(*moved):
        whole = list(values)
        for place, value in zip(real, moved, strict=True):
            whole[place] = value
        return [y for y in function(*whole) if jnp.issubdtype(y.dtype, jnp.inexact)]

    @jax.jit
    @jax.default_matmul_precision("highest")
    def pulled(size, *moved):
        outputs, pull = jax.vjp(results, *moved)
        keys = jax.random.split(jax.random.key(0), max(len(outputs), 1))
        weights = [
            (size * jax.random.normal(key, y.shape)).astype(y.dtype)
            for key, y in zip(keys, outputs, strict=False)
        ]
        return pull(weights)

    return [g for size in _SIZES for g in pulled(size, *(values[i] for i in real))]
