"""Reassociate site inputs as narrow rows times fixed matrices.

A residual stream is a sum of products with fixed matrices, `r = x W_E + h W_out + ...`: it is wide,
but everything in it comes from narrower rows. Reading it along many directions `u` takes fewer
multiply-adds if the directions are multiplied by the fixed matrices first, since these products do
not depend on the batch: `r · u = x · (W_E u) + h · (W_out u) + ...`. XLA does not reassociate
matrix products by itself, so the traced program is followed back from each site input to the terms.
Letters: B batch, d width of a site's input, f width of the rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core


class Reassociated(NamedTuple):
    """A value as the product `rows @ matrix`.

    Attributes:
      rows: [B, ..., f], which depend on the inputs.
      matrix: [f, d], which does not.
    """

    rows: jax.Array
    matrix: jax.Array


class _Product(NamedTuple):
    """A summand: a variable times a chain of fixed matrices, each with a flag for transposition."""

    source: Any
    matrices: tuple[tuple[Any, bool], ...]


def reassociate(function: Callable[[Any], list[jax.Array]], x: Any) -> list[Reassociated | None]:
    """Write every output of a function as rows times a fixed matrix, where it is such a product.

    Args:
      function: function from inputs [B, ...] to a list of [B, ..., d]; arrays in its closure count
        as fixed.
      x: [B, ...] inputs.

    Returns:
      For every output the product, or None where some summand is not a product with a fixed matrix.
    """
    closed = jax.make_jaxpr(function)(x)
    jaxpr = closed.jaxpr
    sums = [_products(jaxpr, variable) for variable in jaxpr.outvars]
    # One summand without a matrix would need rows of the full width d: nothing would be saved.
    complete = [all(product.matrices for product in products) for products in sums]
    wanted: dict[Any, None] = {}
    for products in (p for p, ok in zip(sums, complete, strict=True) if ok):
        for product in products:
            wanted |= dict.fromkeys([product.source, *(matrix for matrix, _ in product.matrices)])
    # The same program with other outputs: the rows and matrices, instead of the wide values.
    debug = jaxpr.debug_info.with_unknown_names()
    partial = jaxpr.replace(outvars=list(wanted), debug_info=debug)
    results = core.jaxpr_as_fun(core.ClosedJaxpr(partial, closed.consts))(*jax.tree.leaves(x))
    values = dict(zip(wanted, results, strict=True))
    return [
        _assemble(products, values) if ok else None
        for products, ok in zip(sums, complete, strict=True)
    ]


def _assemble(products: list[_Product], values: dict[Any, jax.Array]) -> Reassociated:
    """Put summands side by side: `x A + h B = [x h] [A; B]`, one product with one matrix."""
    rows, matrices = [], []
    for source, chain in products:
        oriented = [values[m].T if flipped else values[m] for m, flipped in chain]
        total = oriented[0]
        for matrix in oriented[1:]:
            total = total @ matrix
        rows.append(values[source])
        matrices.append(total)
    if len(rows) == 1:
        return Reassociated(rows[0], matrices[0])
    return Reassociated(jnp.concatenate(rows, axis=-1), jnp.concatenate(matrices, axis=0))


def _products(jaxpr, variable) -> list[_Product]:
    """Find the summands of a variable, following it back through sums and fixed matrices."""
    producers = {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}
    varying = set(jaxpr.invars)
    for eqn in jaxpr.eqns:
        if any(isinstance(atom, core.Var) and atom in varying for atom in eqn.invars):
            varying |= set(eqn.outvars)

    def follow(var) -> list[_Product]:
        eqn = producers.get(var)
        if eqn is None:
            return [_Product(var, ())]
        name = eqn.primitive.name
        # Both sides of a sum must depend on the inputs: a fixed side (a bias) is not a product with
        # rows. A side of another shape is broadcast, and its product would have another matrix.
        if name in ("add", "add_any") and all(
            isinstance(atom, core.Var) and atom in varying and _shape(atom) == _shape(var)
            for atom in eqn.invars
        ):
            return follow(eqn.invars[0]) + follow(eqn.invars[1])
        if name == "dot_general" and _is_fixed_product(eqn, varying):
            # A matrix that is contracted along its second axis acts as its transpose.
            (_, (axis,)), _ = eqn.params["dimension_numbers"]
            step = (eqn.invars[1], axis == 1)
            return [_Product(s, (*chain, step)) for s, chain in follow(eqn.invars[0])]
        return [_Product(var, ())]

    return follow(variable)


def _is_fixed_product(eqn, varying: set) -> bool:
    """Whether an equation multiplies the last axis of a varying value by a fixed 2-D matrix.

    It must be the last axis, since rows are [B, ..., f]; the matrix must be 2-D and have no batch
    axes, since every example has to meet the same matrix; and it must not depend on the inputs,
    since it could not be multiplied in advance.
    """
    left, right = eqn.invars
    (contract_left, contract_right), (batch_left, _) = eqn.params["dimension_numbers"]
    return (
        isinstance(left, core.Var)
        and left in varying
        and isinstance(right, core.Var)
        and right not in varying
        and len(_shape(right)) == 2
        and not batch_left
        and contract_left == (len(_shape(left)) - 1,)
        and len(contract_right) == 1
    )


def _shape(var: Any) -> tuple[int, ...]:
    """Shape of a variable, which the types of `jax.extend.core` omit."""
    return var.aval.shape
