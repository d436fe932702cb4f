"""The traced program, evaluated equation by equation, with every parameter leaf followed.

Inner programs that a leaf enters (jit, remat, custom derivatives) are evaluated in place. Scans,
and while loops whose number of iterations the program fixes, are unrolled, so that each linear use
of a leaf is met by itself.
"""

import re
from collections.abc import Callable, Container, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core, source_info_util

from apd_jax.sites import views
from apd_jax.sites.trip_count import MOST_ITERATIONS, trip_count
from apd_jax.sites.uses import LinearUse, recognise
from apd_jax.sites.values import Value, at, bind, passed
from apd_jax.sites.views import LeafView

_CALLS = ("jit", "pjit", "closed_call", "core_call")
# Entered only where a leaf goes in: elsewhere their own derivatives and savings stay.
_CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
_WRAPPERS = ("remat2", "checkpoint", *_CUSTOM)
_LOOPS = ("scan", "while", "cond")
_EACH = ("optimization_barrier", "device_put")  # give every operand as it is
_LOOKED_UP = "looked up at places that don't depend on the inputs, as a bias"
_JOINED = "multiply by each of them, as Flax's LSTMCell does and OptimizedLSTMCell does not"
_SOLVER = "(with diffrax, fixed steps and adjoint=DirectAdjoint())"
# Why a leaf that goes into an equation with a program inside is no site.
_ENCLOSED = {
    "while": "used inside a while loop whose number of iterations depends on values, or is above "
    f"{MOST_ITERATIONS}; write it as a scan of fixed length {_SOLVER}",
    "cond": "used inside a cond, whose course depends on values; compute both branches and choose "
    f"by jnp.where {_SOLVER}",
    "shard_map": "used inside a shard_map or pmap, which gives every device a part of it; write "
    "the network for whole arrays, and let jax.jit divide them (with_sharding_constraint, arrays "
    "with a NamedSharding)",
    **dict.fromkeys(
        _CUSTOM,
        "used inside a custom derivative, whose rule is not that of the equations inside, or can't "
        "be compared with it; leave this parameter out, or call the function without its rule "
        f"{_SOLVER}",
    ),
}
_INSTALLED = re.compile(r"^.*[\\/]site-packages[\\/]")  # a library is named from here on


class Interpreter:
    """Evaluates a program, and asks what to do wherever a leaf is used.

    Args:
      on_use: `(use, as_is) -> result` of an equation that is linear in a leaf; `as_is()` gives what
        the network itself computes.
      on_other: called with `(leaf, reason)` for every other use.
      keeps_derivative: `(eqn, inside) -> bool`: whether an equation with a custom derivative may
        be replaced by the program inside it; asked only where a leaf goes in.
    """

    def __init__(
        self,
        on_use: Callable[[LinearUse, Callable[[], jax.Array]], jax.Array],
        on_other: Callable[[int, str], None],
        keeps_derivative: Callable[[Any, core.ClosedJaxpr], bool] = lambda eqn, inside: True,
    ):
        self._on_use, self._on_other = on_use, on_other
        self._keeps_derivative = keeps_derivative

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
            Value(leaf, LeafView.whole(i, np.shape(leaf)) if i in followed else None)
            for i, leaf in enumerate(leaves)
        ]
        values += [Value(x, varying=True) for x in inputs]
        results = self._walk(program.jaxpr, program.consts, values)
        for result in results:
            if result.view is not None:
                reason = _LOOKED_UP if result.looked_up else "the network returns it"
                self._on_other(result.view.leaf, reason)
        return [result.array for result in results]

    def _walk(self, jaxpr, consts, arguments: Sequence[Value]) -> list[Value]:
        env: dict[Any, Value] = dict(zip(jaxpr.constvars, map(Value.constant, consts), strict=True))
        env |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom):
            return Value.constant(atom.val) if isinstance(atom, core.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            results = self._equation(eqn, [read(atom) for atom in eqn.invars])
            env |= dict(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn, operands: list[Value]) -> Sequence[Value]:
        name = eqn.primitive.name
        if name in (*_WRAPPERS, *_LOOPS):
            # A bias alone is no reason to enter, which drops what the wrapper stands for.
            operands = self._without_biases(operands, alone=True)
        held = [i for i, operand in enumerate(operands) if operand.view is not None]
        # A plain call is always entered: it changes no number. A wrapper is entered only with a
        # leaf inside, since entering drops what it stands for: a derivative of its own, or the
        # memory that rematerialisation saves.
        if name in _CALLS or (held and name in _WRAPPERS and self._may_enter(eqn)):
            inner, consts = _inner_program(eqn.params)
            return self._walk(inner, consts, operands)
        if not held:
            return bind(eqn, operands)
        # Loops and conditions come before moves and uses: what is inside of them decides.
        followed = self._control_flow(eqn, operands)
        if followed is not None:
            return followed
        # The value is still computed as the network does: only the view of it is new, and a value
        # that no use asks for is removed by the compiler.
        if name in _EACH:
            plain = bind(eqn, operands)
            return [passed(old, new.array) for old, new in zip(operands, plain, strict=True)]
        moved = _moved(eqn, operands, held)
        if moved is not None:
            plain = bind(eqn, operands)
            looked_up = name == "gather" or any(operands[i].looked_up for i in held)
            return [
                v._replace(view=view, looked_up=looked_up)
                for v, view in zip(plain, moved, strict=True)
            ]
        operands = self._without_biases(operands)
        held = [i for i in held if operands[i].view is not None]
        found = _recognised(eqn, operands, held)
        if isinstance(found, LinearUse):
            # `bind` is deferred: an operation that replaces this use never needs the original
            # product, so that it is not traced either.
            array = self._on_use(found, lambda: bind(eqn, operands)[0].array)
            return [Value(array, varying=any(operand.varying for operand in operands))]
        self._other_use(eqn, operands, found)
        return bind(eqn, operands)

    def _without_biases(self, operands: list[Value], alone: bool = False) -> list[Value]:
        """The operands, without the views of those looked up at places that the program fixes.

        A bias that meets a weight is an input of it. By itself it may be a weight, too.

        Args:
          operands: operands of an equation.
          alone: leave the views out where there are no others, instead of where there are.
        """
        held = [operand for operand in operands if operand.view is not None]
        biases = [operand for operand in held if operand.looked_up]
        if not biases or (len(biases) == len(held)) != alone:
            return operands
        for operand in biases:
            assert operand.view is not None
            self._on_other(operand.view.leaf, _LOOKED_UP)
        return [o._replace(view=None, looked_up=False) if o.looked_up else o for o in operands]

    def _other_use(self, eqn, operands: list[Value], reason: str) -> None:
        where = _INSTALLED.sub("", source_info_util.summarize(eqn.source_info))
        reason = f"{reason} ({where})" if where.strip("() ") else reason
        for operand in operands:
            if operand.view is not None:
                why = _LOOKED_UP if operand.looked_up else reason
                self._on_other(operand.view.leaf, why)

    def _may_enter(self, eqn) -> bool:
        """Whether the equations inside a wrapper have the derivative of the wrapper."""
        if eqn.primitive.name not in _CUSTOM:
            return True
        inner, consts = _inner_program(eqn.params)
        return self._keeps_derivative(eqn, core.ClosedJaxpr(inner, consts))

    def _control_flow(self, eqn, operands: list[Value]) -> list[Value] | None:
        """The results of a loop or a condition whose course the program fixes; None of others."""
        name, params = eqn.primitive.name, eqn.params
        if name == "scan":
            return self._unrolled(eqn, operands)
        # A branch that the program itself fixes, as `switch` on a constant does, is taken alone.
        # JAX clamps the index, and so does this.
        if name == "cond" and operands[0].number is not None:
            last = len(params["branches"]) - 1
            branch = params["branches"][min(max(operands[0].number, 0), last)]
            return self._walk(branch.jaxpr, branch.consts, operands[1:])
        if name != "while":
            return None
        count = trip_count(eqn, operands)
        if count is None or count > MOST_ITERATIONS:
            return None
        body, first = params["body_jaxpr"], params["cond_nconsts"]
        consts = operands[first : first + params["body_nconsts"]]
        carry = operands[first + params["body_nconsts"] :]
        # Each iteration is walked by itself, so that a leaf that is used n times has n uses.
        for _ in range(count):
            carry = self._walk(body.jaxpr, body.consts, [*consts, *carry])
        return carry

    def _unrolled(self, eqn, operands: list[Value]) -> list[Value]:
        params = eqn.params
        first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
        consts, carry, stacks = operands[:first], operands[first:last], operands[last:]
        turns = range(params["length"])
        outputs: dict[int, list[Value]] = {}
        # The turns of a reversed scan run backwards, but its outputs stay at their own places.
        for turn in reversed(turns) if params["reverse"] else turns:
            slices = [at(stack, turn) for stack in stacks]
            inner = params["jaxpr"]
            results = self._walk(inner.jaxpr, inner.consts, [*consts, *carry, *slices])
            carry, outputs[turn] = results[: last - first], results[last - first :]
        return [*carry, *self._stacked([outputs[turn] for turn in turns], eqn, last - first)]

    def _stacked(self, rows: list[list[Value]], eqn, num_carry: int) -> list[Value]:
        columns = []
        for place, var in enumerate(eqn.outvars[num_carry:]):
            values = [row[place] for row in rows]
            view = views.stack([value.view for value in values])
            # Layers that a scan collects unchanged are a stack of one leaf again, which a later
            # slice can divide. Anything else ends the view.
            for value in values if view is None else ():
                if value.view is not None:
                    self._on_other(value.view.leaf, "a scan collects it")
            arrays = [value.array for value in values]
            empty = jax.numpy.zeros(var.aval.shape, var.aval.dtype)
            array = jax.numpy.stack(arrays) if arrays else empty
            varying = any(value.varying for value in values)
            looked_up = view is not None and any(value.looked_up for value in values)
            columns.append(Value(array, view, varying, looked_up=looked_up))
        return columns


def _moved(eqn, operands: list[Value], held: list[int]) -> list[LeafView] | None:
    """Views of the results where the equation only moves entries of the leaf that it is given."""
    name = eqn.primitive.name
    if name in ("concatenate", "stack"):
        parts = [operand.view for operand in operands]
        join = views.join if name == "concatenate" else views.stack
        joined = join(parts, eqn.params["dimension" if name == "concatenate" else "axis"])
        return None if joined is None else [joined]
    view = operands[0].view
    # A place that depends on the inputs makes a look-up of it, not a move.
    if view is None or held != [0] or any(operand.varying for operand in operands[1:]):
        return None
    numbers = name != "gather"
    others = [operand.number if numbers else operand.concrete() for operand in operands[1:]]
    return views.follow(name, view, others, eqn.params)


def _recognised(eqn, operands: list[Value], held: list[int]) -> LinearUse | str:
    name = eqn.primitive.name
    if name in _ENCLOSED:
        return _ENCLOSED[name]
    # The product of two parameters is quadratic in them: no component of one alone is defined.
    if len(held) > 1:
        joined = f"; {_JOINED}" if name == "concatenate" else ""
        return f"{name} of a parameter with a parameter{joined}"
    if name in ("gather", "dynamic_slice") and not any(o.varying for o in operands):
        return _LOOKED_UP
    arrays, view = [operand.array for operand in operands], operands[held[0]].view
    assert view is not None  # what is held has one
    return recognise(eqn, arrays, held[0], view)


def _inner_program(params) -> tuple[Any, Sequence[Any]]:
    """The program inside an equation, and its constants."""
    key = next(key for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params)
    inner = params[key]
    return (inner.jaxpr, inner.consts) if isinstance(inner, core.ClosedJaxpr) else (inner, ())
