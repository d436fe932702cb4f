"""Attributions: how much every component matters for the output on every example.

Letters: B batch, C components, O outputs, m rank, s uses of sites.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from apd_jax import derivatives, sites
from apd_jax.components import Components, check_components
from apd_jax.derivatives import Mode
from apd_jax.errors import UserError
from apd_jax.forward import Reads, composed, oriented, read_all
from apd_jax.sites import Records, SiteCall, Target

# Tangents of a block: 2 MB in float32, about what a core's own cache holds. In smaller blocks the
# products that don't depend on the batch would weigh more than the cache gains.
_BLOCK_ELEMENTS = 500_000
_MIN_BLOCK = 256
Source = Literal["target", "components"]


class Attributed(NamedTuple):
    """Attributions, and the pass that they were linearised at.

    Attributes:
      scores: [B, C] attributions A_c(x).
      outputs: [B, O] output of the network that was linearised.
      records: input and output of every use of a site in that pass.
      reads: `x U_c` of all components at the site used first, where it came along; it is the same
        in every pass over x.
    """

    scores: jax.Array
    outputs: jax.Array
    records: Records
    reads: Reads


def attribute(
    target: Target,
    components: Components,
    x: jax.Array,
    *,
    mode: Mode = "auto",
    source: Source = "target",
) -> Attributed:
    """Gradient attributions together with the pass they come from; see `gradient_attributions`."""
    for name, value, known in (("mode", mode, Mode), ("source", source, Source)):
        if value not in get_args(known):
            raise UserError(f"{name} must be one of {get_args(known)}, got {value!r}")
    check_components(target, components)
    if source == "components":
        operation = composed(jax.lax.stop_gradient(components))
    else:
        operation = sites.as_is

    def block(inputs):
        at = derivatives.linearise(target, inputs, operation)
        route = derivatives.choose_route(at, components, mode)
        shares = 1 if mode == "literal" else _num_shares(components, at.outputs.size)
        if shares == 1:
            along, reads = route(components)
            return Attributed(_root_mean_square(along), at.outputs, at.records, reads)
        # Components don't interact in the linearised network.
        parts = jax.tree.map(lambda leaf: leaf.reshape(shares, -1, *leaf.shape[1:]), components)
        scores = jax.lax.map(lambda part: _root_mean_square(route(part)[0]).T, parts)
        return Attributed(scores.reshape(-1, len(inputs)).T, at.outputs, at.records, {})

    with jax.default_matmul_precision("highest"):
        blocks = 1 if mode == "literal" else _num_blocks(target, components, x)
        if blocks == 1:
            return block(x)
        # Examples don't interact: blocks of them keep the tangents of all components in cache.
        parts = jax.lax.map(
            lambda part: block(part)._replace(reads={}), x.reshape(blocks, -1, *x.shape[1:])
        )
        return jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), parts)


def _root_mean_square(along: jax.Array) -> jax.Array:
    """RMS over outputs, [C, O, B] to [B, C], with a gradient of 0 where all are 0."""
    squares = jnp.mean(jnp.square(along), axis=1).T
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


def _num_shares(components: Components, outputs: int) -> int:
    """Into how many equal shares components are cut, so that tangents [share, O, B] stay small.

    Cutting copies the factors: only where a component's tangents are larger than they are.
    """
    num_components = next(iter(components.values())).reads.shape[0]
    factors = sum(leaf.size for leaf in jax.tree.leaves(components))
    wanted = num_components * outputs // _BLOCK_ELEMENTS
    if wanted < 2 or factors > num_components * outputs:
        return 1
    fitting = (n for n in range(wanted, 2 * wanted) if num_components % n == 0)
    return next(fitting, 1)


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
      UserError: unknown mode or source, components that do not fit the target's sites.
    """
    return attribute(target, components, x, mode=mode, source=source).scores


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
