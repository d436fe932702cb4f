"""The traced program, evaluated equation by equation, with every parameter leaf followed.

Inner programs that a leaf enters (jit, remat, custom derivatives) are evaluated in place, and scans
turn by turn, so that each linear use of a leaf is met by itself.
"""

import re
from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core, source_info_util

from apd_jax.sites import views
from apd_jax.sites.uses import LinearUse, recognise
from apd_jax.sites.views import View

_CALLS = ("jit", "pjit", "closed_call", "core_call")
# Entered only where a leaf goes in: elsewhere their own derivatives and savings stay.
_WRAPPERS = ("remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
_INSTALLED = re.compile(r"^.*[\\/]site-packages[\\/]")  # a library is named from here on
_SMALL = 16  # numbers of at most so many entries are computed while tracing


class Value(NamedTuple):
    """What a variable of the program stands for.

    Attributes:
      array: its value.
      view: the leaf whose entries it holds, if it holds nothing else.
      varying: whether it depends on the inputs.
    """

    array: Any
    view: View | None = None
    varying: bool = False


class Interpreter:
    """Evaluates a program, and asks what to do wherever a leaf is used.

    Args:
      on_use: `(use, as_is) -> result` of an equation that is linear in a leaf; `as_is()` gives what
        the network itself computes.
      on_other: `(leaf, reason)` is told of every other use.
    """

    def __init__(
        self,
        on_use: Callable[[LinearUse, Callable[[], jax.Array]], jax.Array],
        on_other: Callable[[int, str], None],
    ):
        self._on_use, self._on_other = on_use, on_other

    def run(
        self,
        program: core.ClosedJaxpr,
        leaves: Sequence[Any],
        inputs: Sequence[Any],
        followed: Container[int],
    ) -> list[Any]:
        """Evaluate a program of leaves and inputs.

        Args:
          program: its first operands are the leaves, the others the inputs.
          leaves, inputs: their values.
          followed: numbers of the leaves whose uses are asked about.

        Returns:
          The flat results.
        """
        values = [
            Value(leaf, View.whole(i, np.shape(leaf)) if i in followed else None)
            for i, leaf in enumerate(leaves)
        ]
        values += [Value(x, varying=True) for x in inputs]
        results = self._walk(program.jaxpr, program.consts, values)
        for result in results:
            if result.view is not None:
                self._on_other(result.view.leaf, "the network returns it")
        return [result.array for result in results]

    def _walk(self, jaxpr, consts, arguments: Sequence[Value]) -> list[Value]:
        env: dict[Any, Value] = dict(zip(jaxpr.constvars, map(Value, consts), strict=True))
        env |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom):
            return Value(atom.val) if isinstance(atom, core.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            results = self._equation(eqn, [read(atom) for atom in eqn.invars])
            env |= dict(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn, operands: list[Value]) -> Sequence[Value]:
        name = eqn.primitive.name
        held = [i for i, operand in enumerate(operands) if operand.view is not None]
        if name in _CALLS or (held and name in _WRAPPERS):
            inner, consts = _inner_program(eqn.params)
            return self._walk(inner, consts, operands)
        if not held:
            return _bind(eqn, operands)
        if name == "scan":
            return self._unrolled(eqn, operands)
        moved = self._moved(eqn, operands, held)
        if moved is not None:
            plain = _bind(eqn, operands)
            return [v._replace(view=view) for v, view in zip(plain, moved, strict=True)]
        found = self._recognised(eqn, operands, held)
        if isinstance(found, LinearUse):
            array = self._on_use(found, lambda: _bind(eqn, operands)[0].array)
            return [Value(array, varying=any(operand.varying for operand in operands))]
        where = _INSTALLED.sub("", source_info_util.summarize(eqn.source_info))
        for place in held:
            reason = f"{found} ({where})" if where.strip("() ") else found
            self._on_other(operands[place].view.leaf, reason)
        return _bind(eqn, operands)

    def _moved(self, eqn, operands, held):
        """Views of the results where the equation only moves the entries of its first operand."""
        if held != [0] or any(operand.varying for operand in operands[1:]):
            return None
        others = [_number(operand.array) for operand in operands[1:]]
        return views.follow(eqn.primitive.name, operands[0].view, others, eqn.params)

    def _recognised(self, eqn, operands, held) -> LinearUse | str:
        name = eqn.primitive.name
        if name in ("while", "cond"):
            return f"used inside a {name}, whose course depends on values"
        if len(held) > 1:
            return f"{name} of a parameter with a parameter"
        if name in ("gather", "dynamic_slice") and not any(o.varying for o in operands):
            return "looked up at places that don't depend on the inputs, as a bias"
        arrays = [operand.array for operand in operands]
        return recognise(eqn, arrays, held[0], operands[held[0]].view)

    def _unrolled(self, eqn, operands: list[Value]) -> list[Value]:
        params = eqn.params
        first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
        consts, carry, stacks = operands[:first], operands[first:last], operands[last:]
        turns = range(params["length"])
        outputs: dict[int, list[Value]] = {}
        for turn in reversed(turns) if params["reverse"] else turns:
            slices = [_at(stack, turn) for stack in stacks]
            inner = params["jaxpr"]
            results = self._walk(inner.jaxpr, inner.consts, [*consts, *carry, *slices])
            carry, outputs[turn] = results[: last - first], results[last - first :]
        return [*carry, *self._stacked([outputs[turn] for turn in turns], eqn, last - first)]

    def _stacked(self, rows: list[list[Value]], eqn, num_carry: int) -> list[Value]:
        columns = []
        for place, var in enumerate(eqn.outvars[num_carry:]):
            values = [row[place] for row in rows]
            for value in values:
                if value.view is not None:
                    self._on_other(value.view.leaf, "a scan collects it")
            arrays = [value.array for value in values]
            empty = jax.numpy.zeros(var.aval.shape, var.aval.dtype)
            array = jax.numpy.stack(arrays) if arrays else empty
            columns.append(Value(array, varying=any(value.varying for value in values)))
        return columns


def _inner_program(params) -> tuple[Any, Sequence[Any]]:
    """The program inside an equation, and its constants."""
    key = next(key for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params)
    inner = params[key]
    return (inner.jaxpr, inner.consts) if isinstance(inner, core.ClosedJaxpr) else (inner, ())


def _at(stack: Value, turn: int) -> Value:
    """One turn's share of what a scan runs over."""
    array = stack.array[turn]
    if stack.view is None:
        return stack._replace(array=array)
    first, *rest = stack.view.tables
    moved = stack.view.with_tables([first[turn : turn + 1], *rest])
    return Value(array, View(moved.leaf, moved.offset, moved.tables[1:]))


def _number(array: Any) -> int | None:
    known = not isinstance(array, jax.core.Tracer) and np.ndim(array) == 0
    return int(array) if known else None


def _bind(eqn, operands: Sequence[Value]) -> list[Value]:
    """Compute an equation as the network does; small numbers at once, to be read while tracing."""
    arrays = [operand.array for operand in operands]
    params = eqn.primitive.get_bind_params(eqn.params)
    if _is_small(eqn, arrays):
        with jax.ensure_compile_time_eval():
            out = eqn.primitive.bind(*arrays, **params)
    else:
        out = eqn.primitive.bind(*arrays, **params)
    outs = out if eqn.primitive.multiple_results else [out]
    varying = any(operand.varying for operand in operands)
    return [Value(array, varying=varying) for array in outs]


def _is_small(eqn, arrays) -> bool:
    if not arrays or any(isinstance(array, jax.core.Tracer) for array in arrays):
        return False
    dtypes = [getattr(var.aval, "dtype", None) for var in eqn.outvars]
    whole = all(dtype is not None and _is_whole(dtype) for dtype in dtypes)
    return whole and all(var.aval.size <= _SMALL for var in eqn.outvars)


def _is_whole(dtype) -> bool:
    """Whether numbers are integers or truth values."""
    return any(jax.numpy.issubdtype(dtype, kind) for kind in (np.integer, np.bool_))
