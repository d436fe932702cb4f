"""Values of the traced program's variables, and the equations that are computed as they stand."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from apd_jax.sites.views import LeafView

_SMALL = 16  # numbers of at most so many entries are computed while tracing


class Value(NamedTuple):
    """The value of a variable of the program.

    Attributes:
      array: its value.
      view: the leaf whose entries it holds, if it holds nothing else.
      varying: whether it depends on the inputs.
      known: whether the program's own constants fix it, and it was computed while tracing.
    """

    array: Any
    view: LeafView | None = None
    varying: bool = False
    known: bool = False

    @classmethod
    def constant(cls, array: Any) -> "Value":
        """A constant of the program; those of an outer trace have no value yet."""
        return cls(array, known=not isinstance(array, jax.core.Tracer))

    @property
    def number(self) -> int | None:
        """The value as a whole number, where it is a known scalar."""
        return int(self.array) if self.known and np.ndim(self.array) == 0 else None


def at(stack: Value, turn: int) -> Value:
    """One turn's share of what a scan runs over."""
    if stack.known:
        with jax.ensure_compile_time_eval():
            array = jax.numpy.asarray(stack.array)[turn]
    else:
        array = stack.array[turn]
    if stack.view is None:
        return stack._replace(array=array)
    # The slice keeps its offset within the stack: its first table has one entry, whose offset is
    # added to that of the view by `with_tables`.
    first, *rest = stack.view.tables
    moved = stack.view.with_tables([first[turn : turn + 1], *rest])
    return Value(array, LeafView(moved.leaf, moved.offset, moved.tables[1:]))


def bind(eqn, operands: Sequence[Value]) -> list[Value]:
    """Compute an equation as the network does; small numbers at once, to be read while tracing."""
    arrays = [operand.array for operand in operands]
    params = eqn.primitive.get_bind_params(eqn.params)
    known = _is_small(eqn) and bool(operands) and all(operand.known for operand in operands)
    if known:
        with jax.ensure_compile_time_eval():
            out = eqn.primitive.bind(*arrays, **params)
    else:
        out = eqn.primitive.bind(*arrays, **params)
    outs = out if eqn.primitive.multiple_results else [out]
    varying = any(operand.varying for operand in operands)
    return [Value(array, varying=varying, known=known) for array in outs]


def _is_small(eqn) -> bool:
    """Whether an equation gives few whole numbers or truth values alone."""
    avals = [var.aval for var in eqn.outvars]
    whole = all(_is_real(getattr(aval, "dtype", None)) for aval in avals)
    return whole and all(aval.size <= _SMALL for aval in avals)


def _is_real(dtype) -> bool:
    if dtype is None:
        return False
    return any(jax.numpy.issubdtype(dtype, kind) for kind in (np.integer, np.floating, np.bool_))
