"""Attributions: how much every component matters for the output on every example.

Letters: B batch, C components, O outputs, m rank, s uses of sites.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from apd_jax import association, pushforward, sites
from apd_jax.components import Components
from apd_jax.forward import composed, oriented, read_all
from apd_jax.sites import Records, SiteCall, Target

# Tangents of a block: 2 MB in float32, about what a core's own cache holds.
_BLOCK_ELEMENTS = 500_000
_MIN_BLOCK = 64
Mode = Literal["auto", "forward", "reverse", "literal"]
Source = Literal["target", "components"]


class Attributed(NamedTuple):
    """Attributions, and the pass that they were linearised at.

    Attributes:
      scores: [B, C] attributions A_c(x).
      outputs: [B, O] output of the network that was linearised.
      records: input and output of every use of a site in that pass.
    """

    scores: jax.Array
    outputs: jax.Array
    records: Records


class _Linearised(NamedTuple):
    outputs: jax.Array
    records: Records
    factored: dict[Any, association.Factored | None]
    zeros: dict[Any, jax.Array]
    push: Any


def _linearise(target: Target, x: jax.Array, operation: sites.Operation) -> _Linearised:
    """Linearise the output in taps added to every site's output, at tap = 0."""
    shapes = jax.eval_shape(lambda inputs: sites.run(target, inputs, operation)[1], x)
    zeros = {key: jnp.zeros(record.y.shape, record.y.dtype) for key, record in shapes.items()}

    def tapped(taps):
        return sites.run(target, x, lambda call: operation(call) + taps[call.key])

    def site_inputs(inputs):
        records = sites.run(target, inputs, operation)[1]
        return [records[key].x for key in shapes]

    outputs, push, records = jax.linearize(tapped, zeros, has_aux=True)
    factored = dict(zip(shapes, association.factor(site_inputs, x), strict=True))
    return _Linearised(outputs, records, factored, zeros, push)


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


def _forward(at: _Linearised, components: Components) -> jax.Array:
    """Directional derivatives [C, O, B] by forward mode: C tangents, products reassociated."""
    tangents = {}
    for key, record in at.records.items():
        factors = oriented(components, record)
        reads, rows = _associate(factors.reads, record.x, at.factored[key])
        coefficients = jnp.einsum("crd,b...d->crb...", reads, rows)
        tangents[key] = pushforward.Term(coefficients, factors.writes)
    return pushforward.push_forward(at.push, at.zeros, tangents)


def _literal(at: _Linearised, components: Components) -> jax.Array:
    """Directional derivatives [C, O, B] from materialised components, one JVP each."""

    def one(component: Components):
        tangents = {}
        for key, record in at.records.items():
            factors = oriented(component, record)
            tangents[key] = jnp.matmul(record.x, factors.reads.T @ factors.writes)
        return at.push(tangents)

    return jnp.swapaxes(jax.vmap(one)(components), 1, 2)


def _reverse(at: _Linearised, components: Components) -> jax.Array:
    """Directional derivatives [C, O, B] by reverse mode: one VJP for every output."""
    pull = jax.linear_transpose(at.push, at.zeros)
    batch_size, width = at.outputs.shape
    basis = jnp.broadcast_to(jnp.eye(width)[:, None], (width, batch_size, width))
    (gradients,) = jax.vmap(pull)(basis.astype(at.outputs.dtype))
    total = jnp.zeros((components[next(iter(components))].reads.shape[0], width, batch_size))
    for key, record in at.records.items():
        factors = oriented(components, record)
        written = jnp.einsum("b...cr,crd->b...cd", read_all(record.x, factors), factors.writes)
        total = total + jnp.einsum("ob...d,b...cd->cob", gradients[key], written)
    return total


_ROUTES = {"forward": _forward, "reverse": _reverse, "literal": _literal}


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


def _cheaper(at: _Linearised, components: Components) -> str:
    """The route of forward and reverse mode that needs fewer multiply-adds."""
    costs = {}
    for mode in ("forward", "reverse"):
        traced = jax.make_jaxpr(lambda c, route=_ROUTES[mode]: route(at, c))(components)
        costs[mode] = _multiplications(traced.jaxpr)
    return min(costs, key=costs.__getitem__)


def attribute(
    target: Target,
    components: Components,
    x: jax.Array,
    *,
    mode: Mode = "auto",
    source: Source = "target",
) -> Attributed:
    """Gradient attributions together with the pass they come from; see `gradient_attributions`."""
    if mode not in ("auto", *_ROUTES):
        raise ValueError(f"mode must be one of {('auto', *_ROUTES)}, got {mode!r}")
    if source not in ("target", "components"):
        raise ValueError(f"source must be 'target' or 'components', got {source!r}")
    check_components(target, components)
    if source == "components":
        operation = composed(jax.lax.stop_gradient(components))
    else:
        operation = sites.as_is

    def block(inputs):
        at = _linearise(target, inputs, operation)
        if at.outputs.ndim != 2:
            raise ValueError(f"the network must give [B, O] outputs, got {at.outputs.shape}")
        route = _ROUTES[_cheaper(at, components) if mode == "auto" else mode]
        return Attributed(_root_mean_square(route(at, components)), at.outputs, at.records)

    with jax.default_matmul_precision("highest"):
        blocks = 1 if mode == "literal" else _num_blocks(target, components, x)
        if blocks == 1:
            return block(x)
        # Examples don't interact: blocks of them keep the tangents of all components in cache.
        parts = jax.lax.map(block, x.reshape(blocks, -1, *x.shape[1:]))
        return jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), parts)


def _root_mean_square(derivatives: jax.Array) -> jax.Array:
    """RMS over outputs, [C, O, B] to [B, C], with a gradient of 0 where all are 0."""
    squares = jnp.mean(jnp.square(derivatives), axis=1).T
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def _num_blocks(target: Target, components: Components, x: jax.Array) -> int:
    """Into how many equal blocks the batch is cut, so that tangents [C, O, block] stay small."""
    num_components = next(iter(components.values())).reads.shape[0]
    width = jax.eval_shape(target, x).shape[-1]
    wanted = x.shape[0] * num_components * width // _BLOCK_ELEMENTS
    blocks = 1
    while blocks * 2 <= wanted and x.shape[0] % (blocks * 2) == 0:
        blocks *= 2
    return blocks if x.shape[0] // blocks >= _MIN_BLOCK else 1


def gradient_attributions(
    target: Target,
    components: Components,
    x: jax.Array,
    *,
    mode: Mode = "auto",
    source: Source = "target",
) -> jax.Array:
    """The paper's attributions: RMS over outputs of the derivative along every component.

    `A_c(x) = sqrt( (1/O) Σ_o ( Σ_l <∂f_o(x, θ)/∂θ_l, P_{c,l}> )² )` (section 2.2 of the paper),
    at θ = θ* or θ = Σ_c P_c. All routes are exact; products run at float32 on every backend.

    Args:
      target: the network.
      components: `{site: Factors}` with C components.
      x: [B, ...] inputs.
      mode: `"forward"` pushes the C components' tangents through the linearised network,
        `"reverse"` pulls the O outputs back to the sites, `"auto"` traces both and takes the one
        with fewer multiply-adds, `"literal"` materialises every component.
      source: linearise the target (`"target"`) or the component model (`"components"`).

    Returns:
      [B, C] scores, not negative.

    Raises:
      ValueError: unknown mode or source, components that do not fit the target's sites.
    """
    return attribute(target, components, x, mode=mode, source=source).scores


def check_components(target: Target, components: Components) -> None:
    """Raise ValueError unless components have the target's sites, widths, and one C."""
    if set(components) != set(target.sites):
        raise ValueError(
            f"components are for sites {sorted(components)}, the target's are "
            f"{sorted(target.sites)}"
        )
    counts = set()
    for site, weight in target.weights.items():
        factors = components[site]
        widths = factors.reads.shape[-1], factors.writes.shape[-1]
        if widths != weight.shape or factors.reads.shape[:-1] != factors.writes.shape[:-1]:
            raise ValueError(
                f"site {site!r} has a matrix {weight.shape}, its factors are U "
                f"{factors.U.shape} and V {factors.V.shape}; expected [C, d_in, m], [C, m, d_out]"
            )
        counts.add(factors.reads.shape[0])
    if len(counts) > 1:
        raise ValueError(f"sites differ in their number of components: {sorted(counts)}")


def ablation_attributions(target: Target, components: Components, x: jax.Array) -> jax.Array:
    """Mean squared change of the output when one component is removed.

    `(1/O) Σ_o ( f_o(x, Σ_j P_j) − f_o(x, Σ_{j≠c} P_j) )²`, one pass per component.

    Args:
      target: the network.
      components: `{site: Factors}` with C components.
      x: [B, ...] inputs.

    Returns:
      [B, C].
    """
    check_components(target, components)
    full, _ = sites.run(target, x, composed(components))

    def without(one: Components) -> jax.Array:
        removed = {
            site: factors.sum() - one[site].reads.T @ one[site].writes
            for site, factors in components.items()
        }
        ablated, _ = sites.run(
            target, x, lambda call: sites.as_is(call._replace(weight=removed[call.name]))
        )
        return jnp.mean(jnp.square(full - ablated), axis=-1)

    return jax.lax.map(without, components).T


def activation_attributions(target: Target, components: Components, x: jax.Array) -> jax.Array:
    """Squared norm of what every component writes in the full component model.

    `Σ_l ‖x_l P_{c,l}‖²`, every use of a tied site counted, x_l from the pass with all components.

    Args:
      target: the network.
      components: `{site: Factors}` with C components.
      x: [B, ...] inputs.

    Returns:
      [B, C].
    """
    check_components(target, components)
    full = composed(components)
    writes: list[jax.Array] = []

    def recorded(call: SiteCall) -> jax.Array:
        factors = oriented(components, call)
        writes.append(jnp.einsum("b...cr,crd->b...cd", read_all(call.x, factors), factors.writes))
        return full(call)

    sites.run(target, x, recorded)
    squares = [jnp.square(jnp.moveaxis(w, -2, 1)) for w in writes]
    return sum(s.reshape(*s.shape[:2], -1).sum(-1) for s in squares)
