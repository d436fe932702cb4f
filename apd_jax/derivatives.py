"""Directional derivatives of all outputs along all components, by exact routes.

Letters: B batch, C components, O outputs, m rank, d width of a site's input.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from apd_jax import association, pushforward, sites
from apd_jax.components import Components
from apd_jax.errors import UserError
from apd_jax.forward import Reads, oriented, read_all
from apd_jax.sites import Records, Target

Mode = Literal["auto", "forward", "reverse", "literal"]
# Derivatives [C, O, B] of all outputs along components, and reads that were formed on the way.
Route = Callable[[Components], tuple[jax.Array, Reads]]


class Linearised(NamedTuple):
    """A network, linear in what is added to the outputs of its sites.

    Attributes:
      outputs: [B, O] output of the network.
      records: input and output of every use of a site.
      factored: inputs of the sites as rows times fixed matrices, None where they aren't that.
      zeros: the point of linearisation, zeros in the shapes of the sites' outputs.
      push: from what is added to every site's output to the change of the network's.
      first: the use of a site that comes before all others.
    """

    outputs: jax.Array
    records: Records
    factored: dict[Any, association.Factored | None]
    zeros: dict[Any, jax.Array]
    push: Callable[[dict[Any, jax.Array]], jax.Array]
    first: tuple[str, int]


def linearise(target: Target, x: jax.Array, operation: sites.Operation) -> Linearised:
    """Linearise the output in taps added to every site's output, at tap = 0.

    Args:
      target: the network.
      x: [B, ...] inputs.
      operation: what a site computes, such as `sites.as_is`.

    Raises:
      UserError: a network whose outputs are not [B, O].
    """
    shapes = jax.eval_shape(lambda inputs: sites.run(target, inputs, operation)[1], x)
    zeros = {key: jnp.zeros(record.y.shape, record.y.dtype) for key, record in shapes.items()}
    order: list[tuple[str, int]] = []

    def tapped(taps):
        outputs, records = sites.run(target, x, lambda call: operation(call) + taps[call.key])
        order[:] = records  # the dictionary that leaves `linearize` is sorted by name
        return outputs, records

    def site_inputs(inputs):
        records = sites.run(target, inputs, operation)[1]
        return [records[key].x for key in shapes]

    outputs, push, records = jax.linearize(tapped, zeros, has_aux=True)
    factored = dict(zip(shapes, association.factor(site_inputs, x), strict=True))
    if outputs.ndim != 2:
        raise UserError(f"the network must give [B, O] outputs, got {outputs.shape}")
    return Linearised(outputs, records, factored, zeros, push, order[0])


def choose_route(at: Linearised, components: Components, mode: Mode) -> Route:
    """A function from components, or some of them, to their directional derivatives [C, O, B].

    It gives besides, where it has formed it, `x U_c` at the site used first, whose input no site
    has touched.

    Args:
      at: the network at the inputs.
      components: `{site: Factors}`; their sizes decide in mode `"auto"`.
      mode: see `attributions.gradient_attributions`.
    """
    route = ROUTES[_cheaper(at, components) if mode == "auto" else mode]
    return lambda some: route(at, some)


def _associate(
    reads: jax.Array, x: jax.Array, factored: association.Factored | None
) -> tuple[jax.Array, jax.Array]:
    """Directions [C, m, f] and rows [B, ..., f] whose products are `reads · x`, where f costs less.

    Reading x [B, ..., d] = rows · matrix directly takes B·d multiply-adds a direction; with the
    matrix first it takes f·d + B·f.
    """
    if factored is None:
        return reads, x
    width, full = factored.matrix.shape
    count = x.size // full
    if width * (full + count) >= count * full:
        return reads, x
    return jnp.einsum("crd,fd->crf", reads, factored.matrix), factored.rows


def _forward(at: Linearised, components: Components) -> tuple[jax.Array, Reads]:
    """Forward mode, C tangents with products reassociated: derivatives [C, O, B], and reads."""
    tangents = {}
    for key, record in at.records.items():
        factors = oriented(components, record)
        reads, rows = _associate(factors.reads, record.x, at.factored[key])
        coefficients = jnp.einsum("crd,b...d->crb...", reads, rows)
        tangents[key] = pushforward.Term(coefficients, factors.writes)
    reads = {at.first: tangents[at.first].coefficients}
    return pushforward.push_forward(at.push, at.zeros, tangents), reads


def _literal(at: Linearised, components: Components) -> tuple[jax.Array, Reads]:
    """Materialised components, one JVP each: derivatives [C, O, B]."""

    def one(component: Components):
        tangents = {}
        for key, record in at.records.items():
            factors = oriented(component, record)
            tangents[key] = jnp.matmul(record.x, factors.reads.T @ factors.writes)
        return at.push(tangents)

    return jnp.swapaxes(jax.vmap(one)(components), 1, 2), {}


def _reverse(at: Linearised, components: Components) -> tuple[jax.Array, Reads]:
    """Reverse mode, one VJP for every output: derivatives [C, O, B]."""
    pull = jax.linear_transpose(at.push, at.zeros)
    batch_size, width = at.outputs.shape
    basis = jnp.broadcast_to(jnp.eye(width)[:, None], (width, batch_size, width))
    (gradients,) = jax.vmap(pull)(basis.astype(at.outputs.dtype))
    total = jnp.zeros((components[next(iter(components))].reads.shape[0], width, batch_size))
    for key, record in at.records.items():
        factors = oriented(components, record)
        written = jnp.einsum("b...cr,crd->b...cd", read_all(record.x, factors), factors.writes)
        total = total + jnp.einsum("ob...d,b...cd->cob", gradients[key], written)
    return total, {}


ROUTES = {"forward": _forward, "reverse": _reverse, "literal": _literal}


def _multiplications(jaxpr) -> int:
    """Multiply-adds of all matrix products in a program."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            depth = 1
            for axis in contracted:
                depth *= shape[axis]
            total += depth * eqn.outvars[0].aval.size
        total += sum(_multiplications(inner) for inner in core.jaxprs_in_params(eqn.params))
    return total


def _cheaper(at: Linearised, components: Components) -> str:
    """The route of forward and reverse mode that needs fewer multiply-adds."""
    costs = {}
    for mode in ("forward", "reverse"):
        traced = jax.make_jaxpr(lambda c, route=ROUTES[mode]: route(at, c))(components)
        costs[mode] = _multiplications(traced.jaxpr)
    return min(costs, key=costs.__getitem__)
