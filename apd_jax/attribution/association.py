"""Site inputs taken apart into rows times fixed matrices.

A residual stream is a sum of products with fixed matrices, `r = x W_E + h W_out + ...`: it is
wide, but all of it comes from narrow rows. Reading it along many directions `u` costs less if these
meet the fixed matrices first: `r · u = x · (W_E u) + h · (W_out u) + ...`.
Letters: B batch, d width of a site's input, f width of the rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core


class Factored(NamedTuple):
    """A value `rows @ matrix`.

    Attributes:
      rows: [B, ..., f], depends on the inputs.
      matrix: [f, d], does not.
    """

    rows: jax.Array
    matrix: jax.Array


class _Product(NamedTuple):
    """A summand: a variable times fixed matrices, each with whether it is to be transposed."""

    source: Any
    matrices: tuple[tuple[Any, bool], ...]


def factor(function: Callable[[Any], list[jax.Array]], x: Any) -> list[Factored | None]:
    """Write every output of a function as rows times a fixed matrix, where it is that.

    Args:
      function: of inputs [B, ...] to a list of [B, ..., d]; what it closes over is fixed.
      x: [B, ...] inputs.

    Returns:
      For every output its factored form, or None where some summand is no product with a fixed
      matrix.
    """
    closed = jax.make_jaxpr(function)(x)
    jaxpr = closed.jaxpr
    sums = [_products(jaxpr, variable) for variable in jaxpr.outvars]
    factorable = [all(product.matrices for product in products) for products in sums]
    wanted: dict[Any, None] = {}
    for products in (p for p, ok in zip(sums, factorable, strict=True) if ok):
        for product in products:
            wanted |= dict.fromkeys([product.source, *(matrix for matrix, _ in product.matrices)])
    debug = jaxpr.debug_info.with_unknown_names()
    partial = jaxpr.replace(outvars=list(wanted), debug_info=debug)
    results = core.jaxpr_as_fun(core.ClosedJaxpr(partial, closed.consts))(*jax.tree.leaves(x))
    values = dict(zip(wanted, results, strict=True))
    return [
        _assemble(products, values) if ok else None
        for products, ok in zip(sums, factorable, strict=True)
    ]


def _assemble(products: list[_Product], values: dict[Any, jax.Array]) -> Factored:
    rows, matrices = [], []
    for source, chain in products:
        oriented = [values[m].T if flipped else values[m] for m, flipped in chain]
        total = oriented[0]
        for matrix in oriented[1:]:
            total = total @ matrix
        rows.append(values[source])
        matrices.append(total)
    if len(rows) == 1:
        return Factored(rows[0], matrices[0])
    return Factored(jnp.concatenate(rows, axis=-1), jnp.concatenate(matrices, axis=0))


def _products(jaxpr, variable) -> list[_Product]:
    """The summands of a variable, followed back through sums and fixed matrices."""
    producers = {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}
    varying = set(jaxpr.invars)
    for eqn in jaxpr.eqns:
        if any(isinstance(atom, core.Var) and atom in varying for atom in eqn.invars):
            varying |= set(eqn.outvars)

    def follow(var) -> list[_Product]:
        eqn = producers.get(var)
        name = eqn.primitive.name if eqn else ""
        # Of a sum, both sides must be rows of their own: a fixed side (a bias) is no product with
        # rows, and one of another shape is broadcast, which would be another matrix.
        if name in ("add", "add_any") and all(
            isinstance(atom, core.Var) and atom in varying and atom.aval.shape == var.aval.shape
            for atom in eqn.invars
        ):
            return follow(eqn.invars[0]) + follow(eqn.invars[1])
        if name == "dot_general" and _is_fixed_product(eqn, varying):
            # Contracted along its second axis, the matrix stands transposed.
            (_, (axis,)), _ = eqn.params["dimension_numbers"]
            step = (eqn.invars[1], axis == 1)
            return [_Product(s, (*chain, step)) for s, chain in follow(eqn.invars[0])]
        return [_Product(var, ())]

    return follow(variable)


def _is_fixed_product(eqn, varying: set) -> bool:
    """Whether an equation multiplies the last axis of a varying value by a fixed 2-D matrix.

    The last axis, since rows are [B, ..., f]; no batch axes, and 2-D, since every example must meet
    the same matrix; fixed, since a matrix that depends on the inputs can't be multiplied ahead.
    """
    left, right = eqn.invars
    (contract_left, contract_right), (batch_left, _) = eqn.params["dimension_numbers"]
    return (
        isinstance(left, core.Var)
        and left in varying
        and isinstance(right, core.Var)
        and right not in varying
        and len(right.aval.shape) == 2
        and not batch_left
        and contract_left == (len(left.aval.shape) - 1,)
        and len(contract_right) == 1
    )
