"""The equations of a traced program."""

from collections.abc import Iterator
from typing import Any

from jax.extend import core


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yield the equations of a program, those of programs inside of others included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in core.jaxprs_in_params(eqn.params):
            yield from equations(inner)
