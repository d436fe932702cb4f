"""Forward passes in which components take the place of the network's own matrices.

Letters: B batch, C components, m rank, P active pairs.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from apd_jax import grouped, sites
from apd_jax.components import Components, Factors
from apd_jax.errors import UserError
from apd_jax.sites import Operation, SiteCall, SiteRecord, Target

MaskedRoute = Literal["auto", "dense", "grouped"]
# `x U_c` of all components, [C, m, B, ...], for uses of sites.
Reads = dict[tuple[str, int], jax.Array]


def oriented(components: Components, call: SiteCall | SiteRecord) -> Factors:
    """The factors of a site as this use of it multiplies: transposed where the use is."""
    factors = components[call.name]
    return factors.transpose() if call.transposed else factors


def read_all(x: jax.Array, factors: Factors) -> jax.Array:
    """`x U_c` of all components, [B, ..., d_in] -> [B, ..., C, m], as one flat product."""
    flat = factors.reads.reshape(-1, factors.reads.shape[-1])
    return jnp.matmul(x, flat.T).reshape(*x.shape[:-1], *factors.reads.shape[:2])


def composed(components: Components) -> Operation:
    """The operation `x Σ_c U_c V_c`: all components active at every site."""
    sums = {site: factors.sum() for site, factors in components.items()}
    return lambda call: sites.as_is(call._replace(weight=sums[call.name]))


def masked(components: Components, mask: jax.Array) -> Operation:
    """The operation `Σ_c s_c(x_b) (x_b U_c) V_c`, a row of the mask [B, C] for every example."""

    def operation(call: SiteCall) -> jax.Array:
        factors = oriented(components, call)
        hidden = read_all(call.x, factors)
        weights = mask.astype(hidden.dtype)
        hidden = hidden * weights.reshape(
            weights.shape[0], *(1,) * (hidden.ndim - 3), weights.shape[1], 1
        )
        flat = factors.writes.reshape(-1, factors.writes.shape[-1])
        return jnp.matmul(hidden.reshape(*call.x.shape[:-1], -1), flat)

    return operation


def masked_pairs(
    components: Components,
    pairs: tuple[jax.Array, jax.Array],
    batch_size: int,
    known: Reads | None = None,
) -> Operation:
    """The masked operation for a boolean mask given by its P active (example, component) pairs.

    Cost and memory follow P and the size of the factors of `min(C, P)` components, not B·C; only
    the gradient has the size of all.

    Args:
      components: `{site: Factors}`.
      pairs: (examples [P], components [P]).
      batch_size: B.
      known: reads that need not be computed again, of uses whose input is not masked.
    """
    known = jax.lax.stop_gradient(known or {})
    num_components = next(iter(components.values())).reads.shape[0]
    groups = grouped.group_pairs(pairs, batch_size, num_components)
    slots = grouped.num_slots(groups.example.size, num_components)

    def operation(call: SiteCall) -> jax.Array:
        factors = oriented(components, call)
        reads, writes = groups.factors(factors.reads), groups.factors(factors.writes)
        x = call.x[groups.example]
        if call.key in known:
            hidden = known[call.key][groups.component(), :, groups.example]
            hidden = grouped.read_known(slots, jnp.moveaxis(hidden, 1, -1), x, reads, groups)
        else:
            hidden = grouped.read(slots, x, reads, groups)
        written = grouped.write(slots, hidden, writes, groups)
        return jax.ops.segment_sum(written, groups.example, call.x.shape[0])

    return operation


def choose_masked_route(num_pairs: int, batch_size: int, num_components: int) -> str:
    """`"grouped"` where it leaves out at least three quarters of the products, else `"dense"`."""
    slots = grouped.num_slots(num_pairs, num_components)
    return "grouped" if 4 * slots <= batch_size else "dense"


@jax.jit
@jax.default_matmul_precision("highest")
def _composed_apply(target, components, x):
    return sites.run(target, x, composed(components))[0]


@jax.jit
@jax.default_matmul_precision("highest")
def _masked_apply(target, components, x, mask):
    return sites.run(target, x, masked(components, mask))[0]


def composed_apply(target: Target, components: Components, x: jax.Array) -> jax.Array:
    """Output of the full component model, `f(x, Σ_c P_c)`.

    Args:
      target: the network.
      components: `{site: Factors}`.
      x: [B, ...] inputs.

    Returns:
      [B, O].
    """
    return _composed_apply(target, components, x)


def masked_apply(
    target: Target, components: Components, x: jax.Array, mask: jax.Array
) -> jax.Array:
    """Output with a choice of components on every example, `f(x, Σ_c s_c(x) P_c)`.

    Args:
      target: the network.
      components: `{site: Factors}` with C components.
      x: [B, ...] inputs.
      mask: [B, C], bool or weights.

    Returns:
      [B, O].

    Raises:
      UserError: a mask that is not [B, C].
    """
    num_components = next(iter(components.values())).reads.shape[0]
    if mask.shape != (x.shape[0], num_components):
        raise UserError(
            f"mask has shape {mask.shape}, expected [B, C] = {(x.shape[0], num_components)}"
        )
    return _masked_apply(target, components, x, mask)
