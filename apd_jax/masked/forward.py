"""Forward passes with components in place of the network's own matrices.

Letters: B batch, T positions (one axis or several), C components, G stacked blocks, m rank,
P active pairs.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from apd_jax import sites
from apd_jax.components import Components, Factors, check_given, num_components
from apd_jax.errors import UserError
from apd_jax.masked import grouped_matmul, grouping, remat
from apd_jax.programs.axes import spread
from apd_jax.programs.compiled import jit_with_network
from apd_jax.sites import Operation, Patches, PyTree, SiteCall, Target
from apd_jax.sites.given_arrays import one_array

MaskedRoute = Literal["auto", "dense", "grouped"]
# Cost of gathering a number of a row and of adding it to a sum, in multiply-adds of products.
_GATHERED = 20


def is_look_up(x: jax.Array | Patches) -> bool:
    """Whether rows are indices of a look-up, which stand for one-hot rows."""
    return jnp.issubdtype(x.dtype, jnp.integer)


def times(rows: jax.Array | Patches, matrix: jax.Array) -> jax.Array:
    """Rows [B, ..., (G), d_in] times a matrix [(G,) d_in, d_out]; look-ups by index."""
    if isinstance(rows, Patches):
        rows = rows.formed()
    if is_look_up(rows):
        return matrix[rows]
    return jnp.einsum("...gi,gio->...go", rows, matrix) if matrix.ndim == 3 else rows @ matrix


def read_all(x: jax.Array | Patches, factors: Factors) -> jax.Array:
    """`x U_c` of all components: rows [B, ..., (G), d_in] to [B, ..., (G), C, m]."""
    if isinstance(x, Patches):
        return x.read(factors.reads)
    if is_look_up(x):
        # The product with a one-hot row is one column of the factor: nothing of the size of the
        # vocabulary is multiplied.
        return jnp.moveaxis(jnp.take(factors.reads, x, axis=-1), (0, 1), (-2, -1))
    if factors.stacked:
        return jnp.einsum("...gd,cgmd->...gcm", x, factors.reads)
    # One product with the C·m directions of all components side by side.
    flat = factors.reads.reshape(-1, factors.reads.shape[-1])
    return jnp.matmul(x, flat.T).reshape(*x.shape[:-1], *factors.reads.shape[:2])


def write_sum(hidden: jax.Array, factors: Factors) -> jax.Array:
    """`Σ_c h_c V_c`: [B, ..., (G), C, m] to [B, ..., (G), d_out]."""
    if factors.stacked:
        return jnp.einsum("...gcm,cgmd->...gd", hidden, factors.writes)
    flat = factors.writes.reshape(-1, factors.writes.shape[-1])
    return jnp.matmul(hidden.reshape(*hidden.shape[:-2], -1), flat)


def write_each(hidden: jax.Array, factors: Factors) -> jax.Array:
    """`h_c V_c` of every component: [B, ..., (G), C, m] to [B, ..., (G), C, d_out]."""
    pattern = "...gcm,cgmd->...gcd" if factors.stacked else "...cm,cmd->...cd"
    return jnp.einsum(pattern, hidden, factors.writes)


def full_model(target: Target, components: Components) -> Target:
    """The full component model: the network with `Σ_c P_c` in place of its matrices."""
    return target.with_weights({name: factors.sum() for name, factors in components.items()})


def masked(components: Components, mask: jax.Array) -> Operation:
    """Make the operation `Σ_c s_c(x_b) (x_b U_c) V_c`, with the mask applied between U and V.

    Args:
      components: `{site: Factors}`.
      mask: [B, C], a row for every example; or [B, T, C], one for every position.
    """

    def operation(call: SiteCall) -> jax.Array:
        factors = components[call.key[0]].placed(call.placement)
        hidden = read_all(call.x, factors)
        weights = mask.astype(hidden.dtype)
        # Rows of an example share its mask, so that axes between batch (or position) and component
        # broadcast.
        between = (1,) * (hidden.ndim - 1 - weights.ndim)
        weights = weights.reshape(*weights.shape[:-1], *between, weights.shape[-1], 1)
        return remat.site_output(write_sum(hidden * weights, factors))

    return operation


def masked_with_remainder(
    components: Components, mask: jax.Array, remainder: jax.Array
) -> Operation:
    """Make the operation `x_b (Σ_c m_c P_c + r Δ)` with the remainder `Δ = θ* − Σ_c P_c`.

    Computed as `Σ_c (m_c − r) x_b P_c + r x_b θ*`: one product by the network's own matrix more
    than `masked` has, and no matrix of the size of Δ.

    Args:
      components: `{site: Factors}`.
      mask: m, [B, (T), C].
      remainder: r, [B, (T)].
    """
    of_components = masked(components, mask - remainder[..., None])

    def operation(call: SiteCall) -> jax.Array:
        y = of_components(call)
        return y + spread(remainder, y.ndim) * call.as_is()

    return operation


def masked_pairs(
    components: Components, pairs: tuple[jax.Array, jax.Array], lead: tuple[int, ...]
) -> Operation:
    """Make the masked operation for a boolean mask given by its P active (row, component) pairs.

    Cost and memory grow with P and the factors of `min(C, P)` components, not with B·C; only the
    gradient has the size of all factors.

    Args:
      components: `{site: Factors}`.
      pairs: (rows [P], components [P]); see `selected.Selected`.
      lead: (B,), or (B, T) if rows are positions, numbered through all examples.
    """
    num_rows = math.prod(lead)
    total = num_components(components)
    groups = grouping.group_pairs(pairs, num_rows, total)

    def dense(call: SiteCall) -> jax.Array:
        mask = jnp.zeros((num_rows, total), bool).at[pairs].set(True, mode="drop")
        return masked(components, mask.reshape(*lead, total))(call)

    def read(x: jax.Array | Patches, reads: jax.Array) -> jax.Array:
        if isinstance(x, Patches):
            return grouped_matmul.read_patches(x, reads, groups)
        product = grouped_matmul.look_up if is_look_up(x) else grouped_matmul.read
        return product(x.reshape(num_rows, *x.shape[len(lead) :]), reads, groups)

    def operation(call: SiteCall) -> jax.Array:
        factors = components[call.key[0]].placed(call.placement)
        if isinstance(call.x, Patches) and len(lead) > 1:
            return dense(call)  # the rows of some positions are no whole images
        hidden = read(call.x, groups.factors(factors.reads))
        writes = groups.factors(factors.writes)
        written = grouped_matmul.write(hidden, writes, groups, num_rows)
        return remat.site_output(written.reshape(*lead, *written.shape[1:]))

    return operation


def masked_by(
    route: MaskedRoute,
    components: Components,
    mask: jax.Array,
    pairs: tuple[jax.Array, jax.Array] | None,
) -> Operation:
    """Make the masked operation of a whole batch by the route that is asked for.

    Args:
      route: `"auto"` chooses by size.
      components: `{site: Factors}`.
      mask, pairs: the selection, as a mask and as its active pairs; see `selected.Selected`.
        Without pairs the dense route is taken, whatever is asked for.
    """
    lead = mask.shape[:-1]
    if route == "auto" and pairs is not None:
        route = choose_masked_route(pairs[0].size, math.prod(lead), components)
    if pairs is None or route == "dense":
        return masked(components, mask)
    return masked_pairs(components, pairs, lead)


def choose_masked_route(
    num_pairs: int, num_rows: int, components: Components
) -> Literal["dense", "grouped"]:
    """Choose `"grouped"` or `"dense"`, by the multiply-adds and the numbers moved of both routes.

    The dense route multiplies every row by all factors. The grouped one multiplies only pairs, but
    gathers their rows and adds up what they write, which costs more than the products where ranks
    are small.

    Args:
      num_pairs: P.
      num_rows: B, or B·T if rows are positions.
      components: `{site: Factors}`.
    """
    count = num_components(components)
    sides = jax.tree.leaves(components)  # [C, (G), m, d]
    dense = sum(num_rows * side.size for side in sides)
    slots = min(num_pairs, count) * grouping.num_slots(num_pairs, count)
    per_pair = sum(side.size // count * (1 + _GATHERED / side.shape[-2]) for side in sides)
    return "grouped" if 2 * slots * per_pair <= dense else "dense"


@jit_with_network
@jax.default_matmul_precision("highest")
def _composed_apply(target, components, x):
    return full_model(target, components)(x)


@jit_with_network
@jax.default_matmul_precision("highest")
def _masked_apply(target, components, x, mask, remainder):
    def some(inputs, rows, share):
        if share is None:
            operation = masked(components, rows)
        else:
            operation = masked_with_remainder(components, rows, share)
        return sites.run(target, inputs, operation, positions=mask.ndim > 2)[0]

    return sites.over_examples(some, target, x, mask, remainder)


def composed_apply(target: Target, components: Components, x: PyTree) -> PyTree:
    """Output of the full component model, `f(x, Σ_c P_c)`.

    Args:
      target: the network.
      components: `{site: Factors}`.
      x: [B, ...] inputs.

    Returns:
      Outputs of the network, [B, ...].

    Raises:
      UserError: components that do not fit the target's sites.
    """
    x = check_given(target, components, x)
    return _composed_apply(target, components, x)


def masked_apply(
    target: Target,
    components: Components,
    x: PyTree,
    mask: jax.Array,
    remainder: jax.Array | None = None,
) -> PyTree:
    """Output with a selection of components on every example, `f(x, Σ_c s_c(x) P_c + r(x) Δ)`.

    Args:
      target: the network.
      components: `{site: Factors}` with C components.
      x: [B, ...] inputs.
      mask: [B, C], bool or weights; [B, T, C] for a selection at every position.
      remainder: [B] or [B, T], share r of what the components miss, `Δ = θ* − Σ_c P_c`; None for
        none of it.

    Returns:
      Outputs of the network, [B, ...].

    Raises:
      UserError: no example, a mask or remainder of another shape, components that do not fit the
        target's sites.
    """
    x = check_given(target, components, x)
    mask = one_array("mask must be one array [B, C] or [B, T, C]", mask)
    if remainder is not None:
        remainder = one_array("remainder must be one array [B] or [B, T]", remainder, jnp.float32)
    check_mask(target, components, x, mask)
    if remainder is not None and remainder.shape != mask.shape[:-1]:
        raise UserError(
            f"remainder has shape {remainder.shape}, expected a number for every row of the mask, "
            f"{mask.shape[:-1]}"
        )
    return _masked_apply(target, components, x, mask, remainder)


def check_mask(target: Target, components: Components, x: PyTree, mask: jax.Array) -> None:
    """Raise UserError unless a mask is [B, C] or [B, T, C], T of one axis or several."""
    positions = sites.position_shape(target, x) if mask.ndim > 2 else ()
    expected = (sites.batch_size(x), *positions, num_components(components))
    if mask.shape != expected:
        form = "[B, T, C]" if positions else "[B, C]"
        raise UserError(f"mask has shape {mask.shape}, expected {form} = {expected}")
