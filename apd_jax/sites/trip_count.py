"""How many iterations a while loop has, where the traced program fixes that."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

# Loops are unrolled: a longer one would take minutes to trace.
MOST_ITERATIONS = 1000


def trip_count(eqn: Any, operands: Sequence[Any]) -> int | None:
    """The number of iterations of a `while` equation, `MOST_ITERATIONS + 1` of any that has more.

    Only what the condition depends on is computed: a counter, not the state that is iterated.

    Args:
      eqn: the equation.
      operands: its operands, each with an `array` and whether it is `known` while tracing.

    Returns:
      None where the number depends on the inputs or on the parameters.
    """
    test, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    of_test, of_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    test_consts, body_consts = operands[:of_test], operands[of_test : of_test + of_body]
    carry = operands[of_test + of_body :]
    condition, read = partial_eval.dce_jaxpr(test.jaxpr, [True])
    wanted = list(read[of_test:])
    while True:
        step, used = partial_eval.dce_jaxpr(body.jaxpr, wanted)
        grown = [a or b for a, b in zip(wanted, used[of_body:], strict=True)]
        if grown == wanted:
            break
        wanted = grown
    consts = _kept(test_consts, read[:of_test]), _kept(body_consts, used[:of_body])
    if not all(operand.known for operand in (*consts[0], *consts[1], *_kept(carry, wanted))):
        return None
    goes_on = core.jaxpr_as_fun(core.ClosedJaxpr(condition, test.consts))
    advance = core.jaxpr_as_fun(core.ClosedJaxpr(step, body.consts))
    fixed = [[operand.array for operand in known] for known in consts]
    state = [operand.array for operand in carry]
    with jax.ensure_compile_time_eval():
        for count in range(MOST_ITERATIONS + 1):
            if not goes_on(*fixed[0], *_kept(state, read[of_test:]))[0]:
                return count
            after = iter(advance(*fixed[1], *_kept(state, used[of_body:])))
            state = [next(after) if w else old for w, old in zip(wanted, state, strict=True)]
    return MOST_ITERATIONS + 1


def _kept(values: Sequence[Any], kept: Sequence[bool]) -> list[Any]:
    return [value for value, keep in zip(values, kept, strict=True) if keep]
