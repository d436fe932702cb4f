"""Values of the traced program's variables, and the equations that are computed as they stand."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from apd_jax.sites.views import LeafView

_SMALL = 16  # numbers of at most so many entries are computed while tracing
_LARGE = 2**20  # and of at most so many where a look-up of a weight asks for them


class Value(NamedTuple):
    """The value of a variable of the program.

    Attributes:
      array: its value.
      view: the leaf whose entries it holds, if it holds nothing else.
      varying: whether it depends on the inputs.
      known: whether the program's own constants fix it, and it was computed while tracing.
      later: computes it while tracing, where the program's own constants fix it; else None.
      looked_up: whether its view was looked up at places that don't depend on the inputs.
    """

    array: Any
    view: LeafView | None = None
    varying: bool = False
    known: bool = False
    later: Callable[[], Any] | None = None
    looked_up: bool = False

    @classmethod
    def constant(cls, array: Any) -> "Value":
        """A constant of the program; those of an outer trace have no value yet."""
        return cls(array, known=not isinstance(array, jax.core.Tracer))

    def concrete(self) -> Any | None:
        """The value where the program's own constants fix it, else None."""
        if self.known:
            return self.array
        return None if self.later is None else self.later()

    @property
    def is_fixed(self) -> bool:
        """Whether the program's own constants fix it."""
        return self.known or self.later is not None

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
        whole = stack.later
        later = None if whole is None else lambda: whole()[turn]
        return stack._replace(array=array, later=later)
    # The slice keeps its offset within the stack: its first table has one entry, whose offset is
    # added to that of the view by `with_tables`.
    first, *rest = stack.view.tables
    moved = stack.view.with_tables([first[turn : turn + 1], *rest])
    view = LeafView(moved.leaf, moved.offset, moved.tables[1:])
    return stack._replace(array=array, view=view)


def passed(value: Value, array: Any) -> Value:
    """The same value as an equation hands it on, as `array`."""
    later = value.concrete if value.is_fixed else None
    return value._replace(array=array, known=False, later=later)


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
    later = [None] * len(outs) if known else _later(eqn, operands, params)
    return [
        Value(array, varying=varying, known=known, later=compute)
        for array, compute in zip(outs, later, strict=True)
    ]


def _later(eqn, operands: Sequence[Value], params) -> list[Callable[[], Any] | None]:
    """For every result what computes it while tracing, where the program's constants fix it."""
    name = eqn.primitive.name
    own = bool(operands) or name == "iota"  # others without operands depend on where they are
    fixed = all(operand.is_fixed for operand in operands)
    if not (own and fixed and _is_small(eqn, _LARGE)) or "callback" in name:
        return [None] * len(eqn.outvars)

    @functools.cache
    def outputs():
        with jax.ensure_compile_time_eval():
            arrays = [operand.concrete() for operand in operands]
            out = eqn.primitive.bind(*arrays, **params)
        return out if eqn.primitive.multiple_results else [out]

    return [functools.partial(lambda i: outputs()[i], i) for i in range(len(eqn.outvars))]


def _is_small(eqn, most: int = _SMALL) -> bool:
    """Whether an equation gives few real numbers or truth values alone."""
    avals = [var.aval for var in eqn.outvars]
    real = all(_is_real(getattr(aval, "dtype", None)) for aval in avals)
    return real and all(aval.size <= most for aval in avals)


def _is_real(dtype) -> bool:
    if dtype is None:
        return False
    return any(jax.numpy.issubdtype(dtype, kind) for kind in (np.integer, np.floating, np.bool_))
