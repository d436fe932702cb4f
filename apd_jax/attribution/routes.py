"""Routes to the derivatives of the outputs along all components, in the linearised network.

Two kinds of routes give derivatives along every component: of all outputs, [C, O, B], or of n
output directions that are pulled back, [n, L, C], for L = B examples, or B·T positions of them.
Letters: B batch, T positions (one axis or several), C components, O outputs, G stacked blocks,
m rank, d width of rows.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from apd_jax import sites
from apd_jax.attribution import association, pushforward
from apd_jax.attribution.metrics import Metric, quantities
from apd_jax.blocks import summed
from apd_jax.components import Components, Factors
from apd_jax.masked import forward
from apd_jax.programs.axes import spread
from apd_jax.programs.counts import operations
from apd_jax.programs.equations import equations
from apd_jax.sites import Patches, PyTree, Records, SiteRecord, Target
from apd_jax.validity import Valid

Mode = Literal["auto", "forward", "reverse", "sketch", "literal"]
Route = Literal["forward", "reverse"]
# Cost of writing a number to memory and reading it again, in multiply-adds of matrix products.
_MOVED = 20


class Linearised(NamedTuple):
    """A network, linearised in taps that are added to the outputs of its sites.

    A component changes a site's output rows by `x P_c`, so that the derivative along all of its
    matrices at once is one application of `push` to these changes; nothing of the size of the
    parameters is formed.

    Attributes:
      outputs: outputs of the network, [B, ...].
      records: input and output rows of every use of a site.
      reassociated: input rows as narrower rows times a fixed matrix; None where they are no such
        product.
      zeros: the point of linearisation, zeros in the shapes of the sites' output rows.
      push: linear map from taps at every site's output rows to the change of the quantities [B, O].
      lead: number of leading axes of rows: 1 for B, and the axes of T if positions are wanted.
    """

    outputs: PyTree
    records: Records
    reassociated: dict[Any, association.Reassociated | None]
    zeros: dict[Any, jax.Array]
    push: Callable[[dict[Any, jax.Array]], jax.Array]
    lead: int


def linearise(
    target: Target, x: PyTree, metric: Metric, positions: bool = False, valid: Valid = None
) -> Linearised:
    """Linearise what a metric measures in taps that are added to every site's output, at tap = 0.

    Args:
      target: the network.
      x: [B, ...] inputs.
      metric: measure of the outputs; see `metrics`.
      positions: give rows the leading axes batch and position, instead of batch alone.
      valid: bool [B] or [B, T], which examples or positions of the outputs count.
    """

    def records_of(inputs):
        return sites.run(target, inputs, sites.as_is, positions=positions)[1]

    shapes = jax.eval_shape(records_of, x)
    zeros = {key: jnp.zeros(record.y.shape, record.y.dtype) for key, record in shapes.items()}

    # The taps stand for `x P_c`, which is added to a site's output. The derivative in them at zero
    # is that along the parameters, by the chain rule, whatever the rank of the components.
    def tapped(taps):
        def operation(call):
            return call.as_is() + taps[call.key]

        outputs, records = sites.run(target, x, operation, positions=positions)
        return quantities(metric, outputs, sites.batch_size(x), valid), (outputs, records)

    axes = sites.position_shape(target, x) if positions else ()
    # The records come out as auxiliary values: at a tap of zero they are those of the target.
    _, push, (outputs, records) = jax.linearize(tapped, zeros, has_aux=True)

    formed = [key for key, record in shapes.items() if not isinstance(record.x, Patches)]

    def rows(inputs):
        found = records_of(inputs)
        return [found[key].x for key in formed]

    products = dict.fromkeys(shapes) | dict(
        zip(formed, association.reassociate(rows, x), strict=True)
    )
    return Linearised(outputs, records, products, zeros, push, 1 + len(axes))


def along_outputs(
    at: Linearised, components: Components, mode: str, position: jax.Array | None = None
) -> jax.Array:
    """Derivatives of all outputs, [C, O, B], by forward mode or literally.

    Args:
      at: the network at the inputs.
      components: `{site: Factors}`.
      mode: `"forward"` or `"literal"`.
      position: number, counted through the axes of positions, of the position at which alone the
        components change the weights; literal mode only.
    """
    return _forward(at, components) if mode == "forward" else _literal(at, components, position)


def pull_back(at: Linearised, directions: jax.Array) -> dict[Any, jax.Array]:
    """Gradients [n, B, (T), ..., d] at every site's output rows of directions [n, B, O]."""
    # The transpose of the linear map itself: the network is not differentiated a second time.
    pull = jax.linear_transpose(at.push, at.zeros)
    dtype = jax.eval_shape(at.push, at.zeros).dtype
    (gradients,) = jax.vmap(pull)(directions.astype(dtype))
    return gradients


def along_directions(at: Linearised, components: Components, directions: jax.Array) -> jax.Array:
    """Derivatives of the outputs in directions [n, B, O], by pulling these back: [n, L, C]."""
    gradients = pull_back(at, directions)
    parts = [
        contract(at.lead, gradients[key], record, components[record.name].placed(record.placement))
        for key, record in at.records.items()
    ]
    return sum(parts[1:], parts[0])


def in_rows(at: Linearised, found: jax.Array) -> jax.Array:
    """Scores [C, L] as [B, (T), C]."""
    lead = next(iter(at.zeros.values())).shape[: at.lead]
    return jnp.moveaxis(found.reshape(-1, *lead), 0, -1)


def contract(lead: int, gradient: jax.Array, record: SiteRecord, factors: Factors) -> jax.Array:
    """`Σ_rows g · (x U_c) V_c` of one use, [n, B, (T), ..., d] to [n, L, C]."""
    stacked = 1 if factors.stacked else 0
    rows = record.y.shape[:lead], record.y.shape[lead : record.y.ndim - 1 - stacked]
    flat = (math.prod(rows[0]), math.prod(rows[1]))
    inner = record.y.shape[record.y.ndim - 1 - stacked :]
    gradient = gradient.astype(jnp.float32).reshape(len(gradient), *flat, *inner)
    hidden = forward.read_all(record.x, factors)
    hidden = hidden.reshape(*flat, *inner[:-1], *hidden.shape[-2:])
    g = "g" if stacked else ""
    count, rank, width = len(gradient), hidden.shape[-1], inner[-1]
    pulled_first = count * rank * (width + _MOVED)
    written_first = width * (count + rank + _MOVED)
    # Associate `g · ((x U_c) V_c)` by cost: with few directions g meets V first, and no output rows
    # of all components are formed.
    if pulled_first >= written_first:
        written = forward.write_each(hidden, factors)
        return jnp.einsum(f"nlr{g}d,lr{g}cd->nlc", gradient, written)

    # One rank after another: a product with all of them would be written to memory whole, and XLA's
    # sum over so short an axis takes longer on CPUs than the product.
    def of_rank(one_rank):
        hidden, writes = one_rank
        pulled = jnp.einsum(f"nlr{g}d,c{g}d->nlr{g}c", gradient, writes)
        return jnp.einsum(f"nlr{g}c,lr{g}c->nlc", pulled, hidden)

    ranks = jnp.moveaxis(hidden, -1, 0), jnp.moveaxis(factors.writes, -2, 0)
    return summed(of_rank, ranks)


def _cheaper_read(
    reads: jax.Array, x: jax.Array, product: association.Reassociated | None
) -> tuple[jax.Array, jax.Array]:
    """Directions [C, m, f] and rows [B, ..., f] whose products are `reads · x`, if that is cheaper.

    Reading x [B, ..., d] = rows · matrix directly takes B·d multiply-adds per direction;
    multiplying the direction by the matrix first takes f·d + B·f.
    """
    if product is None:
        return reads, x
    width, full = product.matrix.shape
    count = x.size // full
    # The saving has to pay for the product of directions and matrix, once for every component.
    if width * (full + count) >= count * full:
        return reads, x
    return jnp.einsum("crd,fd->crf", reads, product.matrix), product.rows


def _tangent(at: Linearised, key, record: SiteRecord, factors: Factors) -> pushforward.Tangent:
    """The tangents of all components at one use, kept low-rank where `pushforward` can use that."""
    tap = at.zeros[key]
    # A stack has a basis for every block, and a half-precision network casts between: neither is a
    # single product `coefficients · basis`.
    if factors.stacked or tap.dtype != factors.writes.dtype:
        dense = forward.write_each(forward.read_all(record.x, factors), factors)
        dense = jnp.moveaxis(dense, -2, 0).astype(tap.dtype)
        return pushforward.Tangent(pushforward.widths_second(dense), None)
    if isinstance(record.x, Patches):
        hidden = forward.read_all(record.x, factors)  # [B, ..., C, m]
        return pushforward.Tangent(jnp.moveaxis(hidden, (-2, -1), (0, 1)), factors.writes)
    if forward.is_look_up(record.x):
        return pushforward.Tangent(jnp.take(factors.reads, record.x, axis=-1), factors.writes)
    reads, rows = _cheaper_read(factors.reads, record.x, at.reassociated[key])
    return pushforward.Tangent(jnp.einsum("crd,b...d->crb...", reads, rows), factors.writes)


def _forward(at: Linearised, components: Components) -> jax.Array:
    tangents = {
        key: _tangent(at, key, record, components[record.name].placed(record.placement))
        for key, record in at.records.items()
    }
    return pushforward.push_forward(at.push, at.zeros, tangents)


def _literal(at: Linearised, components: Components, position: jax.Array | None) -> jax.Array:
    """Derivatives by one JVP for each component with its matrices formed: the definition."""

    def here(tangent):
        if position is None:
            return tangent
        shape = tangent.shape[1 : at.lead]
        is_here = jnp.arange(math.prod(shape)) == position
        return jnp.where(spread(is_here.reshape(shape), tangent.ndim - 1), tangent, 0)

    def one(component: Components):
        tangents = {}
        for key, record in at.records.items():
            reads, writes = component[record.name].placed(record.placement)
            tangents[key] = forward.times(
                record.x, jnp.einsum("...mi,...mo->...io", reads[0], writes[0])
            )
        tangents = jax.tree.map(lambda t, zero: t.astype(zero.dtype), tangents, at.zeros)
        return at.push({key: here(tangent) for key, tangent in tangents.items()})

    alone = jax.tree.map(lambda leaf: leaf[:, None], components)
    return jnp.swapaxes(jax.vmap(one)(alone), 1, 2)


def cheaper(at: Linearised, components: Components, num_outputs: int) -> Route:
    """The mode, forward or reverse, that needs fewer operations in matrix products.

    Both routes are traced, not run, and the products in their programs counted: which one wins
    depends on ranks, widths and the reassociations that the network allows.
    """
    batch_size = len(next(iter(at.zeros.values())))
    basis = jnp.zeros((num_outputs, batch_size, num_outputs))
    routes: dict[Route, Callable] = {
        "forward": lambda c: _forward(at, c),
        "reverse": lambda c: along_directions(at, c, basis),
    }
    costs = {mode: operations(route, components) for mode, route in routes.items()}
    return min(costs, key=costs.__getitem__)


def only_backwards(at: Linearised) -> bool:
    """Whether the network holds a `custom_vjp`, whose derivative can only be pulled back."""
    program = jax.make_jaxpr(at.push)(at.zeros).jaxpr
    return any(eqn.primitive.name == "custom_lin" for eqn in equations(program))
