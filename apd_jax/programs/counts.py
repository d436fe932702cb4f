"""Operations and peak memory of a traced program, counted from its equations.

Nothing is compiled, and arrays may be abstract.
"""

import collections
import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core

# Programs within a program that XLA inlines.
_INLINED = {"jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call"}
_INLINED |= {"custom_vjp_call", "custom_vjp_call_jaxpr", "shard_map", "sharding_constraint"}
# Equations that XLA fuses with those that read their results, which are not written to memory.
_FUSED = {
    *("abs", "add", "add_any", "and", "broadcast_in_dim", "clamp", "convert_element_type", "copy"),
    *("cos", "div", "eq", "erf", "exp", "expand_dims", "floor", "ge", "gt", "integer_pow", "iota"),
    *("is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not"),
    *("or", "pow", "rem", "reshape", "rsqrt", "select_n", "sign", "sin", "slice", "sqrt", "square"),
    *("squeeze", "stop_gradient", "sub", "tanh", "transpose", "xor", "sharding_constraint"),
}
_READS_FUSED = _FUSED | {"reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or"}
_COLLECTIVE = re.compile(
    r"= (\(?[^=]*?)\s(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")


def operations(function: Callable[..., Any], *arguments: Any) -> int:
    """Floating-point operations of a function's matrix products and convolutions.

    An addition and a multiplication count as two. Loops of unknown length count once, and of
    branches the cheapest.

    Args:
      function: a function that JAX can trace.
      *arguments: its arguments, or their shapes.
    """
    return operations_of(jax.make_jaxpr(function)(*arguments).jaxpr)


def operations_of(jaxpr: Any) -> int:
    """`operations` of a traced program."""
    total = 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * eqn.outvars[0].aval.size
        elif name == "conv_general_dilated":
            kernel, out = eqn.invars[1].aval, eqn.outvars[0].aval
            features = eqn.params["dimension_numbers"].rhs_spec[0]
            total += 2 * out.size * kernel.size // kernel.shape[features]
        times = eqn.params["length"] if name == "scan" else 1
        inner = [operations_of(jaxpr) for jaxpr in core.jaxprs_in_params(eqn.params)]
        total += times * (min(inner) if name == "cond" else sum(inner))
    return total


def peak_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """Peak bytes of intermediate and returned arrays.

    Equations run in the traced order, an array is kept until its last use, and results of
    elementwise equations that only elementwise equations and reductions read are never written to
    memory. A compiler may do better or worse, since it reorders and fuses by rules of its own.

    Args:
      function: a function that JAX can trace.
      *arguments: its arguments, or their shapes.
    """
    return _peak(jax.make_jaxpr(function)(*arguments).jaxpr)


class _Equation(NamedTuple):
    name: str
    reads: list[int]
    writes: dict[int, int]  # bytes of each array
    inside: list[Any]


def _flat(jaxpr: Any, known: dict[Any, int], fresh: Iterator[int]) -> Iterator[_Equation]:
    """The equations of a program, with those of inlined programs; numbers stand for arrays."""
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        reads = [known.get(v, -1) if isinstance(v, core.Var) else -1 for v in eqn.invars]
        inside = list(core.jaxprs_in_params(eqn.params))
        if name in _INLINED and len(inside) >= 1 and len(inside[0].invars) == len(reads):
            own = dict(zip(inside[0].invars, reads, strict=True))
            yield from _flat(inside[0], own, fresh)
            for out, inner in zip(eqn.outvars, inside[0].outvars, strict=True):
                known[out] = own.get(inner, -1) if isinstance(inner, core.Var) else -1
            continue
        writes = {}
        for out in eqn.outvars:
            known[out] = next(fresh)
            writes[known[out]] = _bytes(out.aval)
        yield _Equation(name, reads, writes, inside)


def _bytes(aval: Any) -> int:
    size = getattr(aval, "size", 0)
    return size * getattr(getattr(aval, "dtype", None), "itemsize", 8)


def _peak(jaxpr: Any) -> int:
    """Peak bytes of a program's arrays without its arguments, which have the number -1."""
    known: dict[Any, int] = {v: -1 for v in (*jaxpr.invars, *jaxpr.constvars)}
    equations = list(_flat(jaxpr, known, itertools.count()))
    kept = {known.get(v, -1) for v in jaxpr.outvars if isinstance(v, core.Var)}
    readers = collections.defaultdict(list)
    for equation in equations:
        for read in equation.reads:
            readers[read].append(equation.name)

    # When each array is last needed: backwards, since that of a fused equation's operands depends
    # on that of its results. It writes nothing: whatever reads the results computes them again from
    # the operands, which are needed until then.
    end: dict[int, int] = dict.fromkeys(kept, len(equations))
    written: dict[int, int] = {}
    for place, equation in reversed(list(enumerate(equations))):
        fused = equation.name in _FUSED and not kept.intersection(equation.writes)
        fused = fused and all(_READS_FUSED.issuperset(readers[a]) for a in equation.writes)
        if not fused:
            written |= equation.writes
        last = max((end.get(a, place) for a in equation.writes), default=place) if fused else place
        for read in equation.reads:
            end[read] = max(end.get(read, -1), last)

    frees: collections.Counter[int] = collections.Counter()  # bytes, by the last equation
    for array, size in written.items():
        frees[end.get(array, -1)] += size  # never needed: gone with its own equation, see below
    live = most = 0
    for place, equation in enumerate(equations):
        own = sum(written.get(array, 0) for array in equation.writes)
        # An inner program's arrays are there before its results.
        inside = max((_peak(inner) for inner in equation.inside), default=0)
        most = max(most, live + max(own, inside))
        unused = sum(written.get(a, 0) for a in equation.writes if a not in end)
        live += own - unused - frees[place]
    return most


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Number of each collective in the text of a compiled program, and bytes of its results."""
    numbers: collections.Counter[str] = collections.Counter()
    sizes: collections.Counter[str] = collections.Counter()
    for shapes, kind in _COLLECTIVE.findall(text):
        numbers[kind] += 1
        for dtype, dims in _ARRAY.findall(shapes):
            width = 1 if dtype == "pred" else int(re.sub(r"\D", "", dtype)[:2] or 8) // 8
            sizes[kind] += max(width, 1) * math.prod(map(int, filter(None, dims.split(","))))
    return {kind: (numbers[kind], sizes[kind]) for kind in sorted(numbers)}
