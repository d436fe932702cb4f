"""Whether a custom derivative is the derivative of the equations that it stands around.

The interpreter replaces such a function by the equations inside it where a parameter goes in. A
rule that gives another derivative, as straight-through rounding does, would be lost.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from apd_jax.sites.closeness import close

_SIZES = (1.0, 100.0)  # of what is pulled back: a rule that clips shows at one of them
_TOLERANCE = 1e-3
_HALF = 0.05  # where anything is narrower than float32
# How operands of integers and bools are filled. A mask that is all False would hide what it
# switches, and larger indices may be out of range.
_WHOLE = ("mixed", "ones", "zeros")
# How real operands are made from normal draws. Those after the first are for functions that are
# constant, or give no number, there.
_REAL: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda values: values,
    np.abs,
    lambda values: 30 * values,
    lambda values: values / 30,
)


def keeps_derivative(eqn: Any, inside: core.ClosedJaxpr) -> bool:
    """Compare gradients by the rule and by the equations inside, on random numbers.

    Args:
      eqn: an equation with a custom derivative.
      inside: the program inside it.

    Returns:
      Whether they are the same; false, too, where one of the two has no gradient, or where all
      draws leave open what it is.
    """
    avals = [var.aval for var in eqn.invars]
    if any(jnp.issubdtype(aval.dtype, jax.dtypes.extended) for aval in avals):
        return False
    params = eqn.primitive.get_bind_params(eqn.params)
    by_rule = lambda *args: eqn.primitive.bind(*args, **params)  # noqa: E731
    by_equations = core.jaxpr_as_fun(inside)
    dtypes = [var.aval.dtype for var in (*eqn.invars, *eqn.outvars)]
    narrow = any(_is_real(d) and jnp.finfo(d).bits < 32 for d in dtypes)
    try:
        with jax.ensure_compile_time_eval():
            return _same(by_rule, by_equations, avals, _HALF if narrow else _TOLERANCE)
    except Exception:  # whatever a rule says to random numbers, or to have no gradient
        return False


def _same(rule: Callable, equations: Callable, avals: Sequence[Any], tolerance: float) -> bool:
    """Whether two functions have the same gradients, for each operand on a draw that shows it."""
    real = [i for i, aval in enumerate(avals) if _is_real(aval.dtype)]
    first, second = _gradients(rule, real), _gradients(equations, real)
    kinds = _WHOLE if len(real) < len(avals) else _WHOLE[:1]
    unseen = {place for place, i in enumerate(real) if avals[i].size}
    for number, (made, whole) in enumerate(itertools.product(_REAL, kinds)):
        if number >= len(kinds) and not unseen:
            break
        drawn = np.random.default_rng(0)
        values = [_draw(drawn, aval, whole, made) for aval in avals]
        pairs = [
            (place, np.asarray(one), np.asarray(other))
            for size in _SIZES
            for place, (one, other) in enumerate(
                zip(first(size, values), second(size, values), strict=True)
            )
        ]
        if all(close(one, other, tolerance) for _, one, other in pairs):
            # Seen is a gradient with numbers that another one could differ from.
            unseen -= {at for at, one, _ in pairs if np.any(np.isfinite(one) & (one != 0))}
        elif all(np.isfinite(array).all() for _, *both in pairs for array in both):
            return False
    return all(_is_zero(second, values, place) for place in unseen)


def _is_real(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)


def _draw(drawn: np.random.Generator, aval: Any, whole: str, made: Callable) -> np.ndarray:
    if _is_real(aval.dtype):
        values = made(drawn.normal(size=aval.shape))
    elif whole == "mixed":
        values = drawn.integers(0, 2, size=aval.shape)
    else:
        values = np.full(aval.shape, whole == "ones")
    return np.asarray(values, aval.dtype)


def _gradients(function: Callable, real: Sequence[int]) -> Callable:
    """Gradients `(size, values) -> [...]` of random combinations of the real results."""

    @jax.jit
    @jax.default_matmul_precision("highest")
    def pulled(size, values):
        def results(*moved):
            whole = list(values)
            for place, value in zip(real, moved, strict=True):
                whole[place] = value
            return [y for y in function(*whole) if _is_real(y.dtype)]

        outputs, pull = jax.vjp(results, *(values[i] for i in real))
        keys = jax.random.split(jax.random.key(0), max(len(outputs), 1))
        weights = [
            (size * jax.random.normal(key, y.shape)).astype(y.dtype)
            for key, y in zip(keys, outputs, strict=False)
        ]
        return pull(weights)

    return pulled


def _is_zero(gradients: Callable, values: Sequence[Any], place: int) -> bool:
    """Whether a gradient is 0 whatever is pulled back, as behind `stop_gradient`."""
    jaxpr = jax.make_jaxpr(lambda size: gradients(size, values)[place])(1.0).jaxpr
    return not partial_eval.dce_jaxpr(jaxpr, [True])[1][0]
