"""Products of many rows with the factors of the one component each row belongs to.

Only `P = floor(k·B)` of the B·C (example, component) pairs are active. Sorted by component they
fall into `G = min(C, P)` groups; every group is laid into a fixed number of slots, so that the
whole product is one batched matrix product that reads each factor once. A group that overflows its
slots goes on in further rounds, so the result never depends on the number of slots.
Letters: P pairs, C components, G groups, S slots of a group, r and d the two widths of a factor.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from apd_jax.errors import UserError


class Groups(NamedTuple):
    """Active pairs sorted by component.

    Attributes:
      example: int32 [P], the example of every pair.
      group: int32 [P], its group, ascending.
      start: int32 [G], where a group's pairs begin.
      count: int32 [G], how many pairs it has.
      owner: int32 [G], the component of a group (any one for groups without pairs); None where
        every component has a group, in order.
    """

    example: jax.Array
    group: jax.Array
    start: jax.Array
    count: jax.Array
    owner: jax.Array | None

    def factors(self, factor: jax.Array) -> jax.Array:
        """The factors of the groups' components, [C, r, d] to [G, r, d]."""
        return factor if self.owner is None else factor[self.owner]


def group_pairs(pairs: tuple[jax.Array, jax.Array], batch_size: int, num_components: int) -> Groups:
    """Sort (examples, components) pairs by component.

    Args:
      pairs: (examples [P], components [P]), as the selection functions give them.
      batch_size: B.
      num_components: C.

    Raises:
      UserError: B·C of 2³¹ or more, since pairs are numbered.
    """
    if batch_size * num_components >= 2**31:
        raise UserError(
            f"the grouped masked pass numbers its pairs: batch size times components must be below "
            f"2**31, got {batch_size} * {num_components}; use masked_route='dense'"
        )
    # One number a pair: sorting a single array is many times faster than sorting with an index.
    component, example = jnp.divmod(jnp.sort(pairs[1] * batch_size + pairs[0]), batch_size)
    if component.size >= num_components:
        start = jnp.searchsorted(component, jnp.arange(num_components + 1), method="compare_all")
        return Groups(example, component, start[:-1], jnp.diff(start), None)
    first = jnp.concatenate([jnp.ones(1, bool), component[1:] != component[:-1]])
    (start,) = jnp.nonzero(first, size=component.size + 1, fill_value=component.size)
    start, owner = start[:-1], component[jnp.minimum(start[:-1], component.size - 1)]
    count = jnp.diff(start, append=component.size)
    return Groups(example, jnp.cumsum(first) - 1, start, count, owner)


def num_slots(num_pairs: int, num_components: int) -> int:
    """Slots per group: the mean load and three Poisson deviations, in sixteens.

    Where loads are small, reading the factors takes most of the time: spare slots cost little, and
    a second round would cost as much as the first.
    """
    mean = num_pairs / min(num_pairs, num_components) if num_pairs else 0
    return min(16 * math.ceil((mean + 3 * math.sqrt(mean)) / 16), num_pairs)


def _to_slots(rows: jax.Array, groups: Groups, first: jax.Array | int, slots: int) -> jax.Array:
    """Rows [P, ..., d] of every group's members `first ... first + slots - 1`, [G, S, ..., d]."""
    member = first + jnp.arange(slots)
    taken = member < groups.count[:, None]
    index = jnp.where(taken, groups.start[:, None] + member, 0)
    taken = taken.reshape(taken.shape + (1,) * (rows.ndim - 1))
    return jnp.where(taken, rows[index], 0)


def _from_slots(table: jax.Array, groups: Groups, first: jax.Array | int) -> jax.Array:
    """The inverse of `_to_slots`; rows of members outside of this round are 0."""
    member = jnp.arange(groups.group.size) - groups.start[groups.group] - first
    here = (member >= 0) & (member < table.shape[1])
    rows = table[groups.group, jnp.where(here, member, 0)]
    return jnp.where(here.reshape(here.shape + (1,) * (rows.ndim - 1)), rows, 0)


def _in_rounds(one_round, groups: Groups, slots: int):
    """Sum `one_round(first)` over as many rounds as the largest group needs."""

    def more(carry):
        return carry[0] < jnp.max(groups.count)

    def go_on(carry):
        first, total = carry
        return first + slots, total + one_round(first)

    return jax.lax.while_loop(more, go_on, (jnp.int32(slots), one_round(0)))[1]


# Uses of equal shapes, as layers of a network are, share one traced and lowered program.
_once_a_shape = functools.partial(jax.jit, static_argnums=0)


@_once_a_shape
def _read_rounds(slots, x, factor, groups):
    def one_round(first):
        table = jnp.einsum("crd,cs...d->crs...", factor, _to_slots(x, groups, first, slots))
        return _from_slots(jnp.moveaxis(table, 1, -1), groups, first)

    return _in_rounds(one_round, groups, slots)


@_once_a_shape
def _write_rounds(slots, h, factor, groups):
    def one_round(first):
        table = jnp.einsum("cs...r,crd->cs...d", _to_slots(h, groups, first, slots), factor)
        return _from_slots(table, groups, first)

    return _in_rounds(one_round, groups, slots)


@_once_a_shape
def _outer_rounds(slots, h, x, groups):
    def one_round(first):
        h_slots, x_slots = (_to_slots(rows, groups, first, slots) for rows in (h, x))
        return jnp.einsum("cs...r,cs...d->crd", h_slots, x_slots)

    return _in_rounds(one_round, groups, slots)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _read(slots, x, factor, groups):
    return _read_rounds(slots, x, factor, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _write(slots, h, factor, groups):
    return _write_rounds(slots, h, factor, groups)


# The gradients are products with the same groups: spelled out, they take the same route, where
# differentiating the rounds would keep every round's slots.
def _read_backward(slots, saved, g):
    x, factor, groups = saved
    return _write_rounds(slots, g, factor, groups), _outer_rounds(slots, g, x, groups), None


def _write_backward(slots, saved, g):
    h, factor, groups = saved
    return _read_rounds(slots, g, factor, groups), _outer_rounds(slots, h, g, groups), None


_read.defvjp(lambda slots, *args: (_read_rounds(slots, *args), args), _read_backward)
_write.defvjp(lambda slots, *args: (_write_rounds(slots, *args), args), _write_backward)


def _block_by_block(product, slots, rows, factor, groups):
    """A product of rows [P, ..., G, width] with the blocks of a stacked site, one after another."""
    if factor.ndim == 3:
        return product(slots, rows, factor, groups)
    one = functools.partial(product, slots)
    return jax.vmap(one, in_axes=(-2, 1, None), out_axes=-2)(rows, factor, groups)


def read(slots: int, x: jax.Array, factor: jax.Array, groups: Groups) -> jax.Array:
    """`x_p · factor[g_p]ᵀ` of every pair.

    Args:
      slots: slots per group (any number gives the same result).
      x: [P, ..., d] rows in the order of `groups`; [P, ..., blocks, d] of a stacked site.
      factor: [G, r, d], `groups.factors` of a factor; [G, blocks, r, d] of a stacked site.
      groups: the pairs.

    Returns:
      [P, ..., r], or [P, ..., blocks, r].
    """
    return _block_by_block(_read, slots, x, factor, groups)


def look_up(index: jax.Array, factor: jax.Array, groups: Groups) -> jax.Array:
    """`factor[g_p]` at the indices of every pair: [P, ...] and [G, r, d] to [P, ..., r]."""
    group = groups.group.reshape(-1, *(1,) * (index.ndim - 1))
    return factor[group, :, index]


def write(slots: int, h: jax.Array, factor: jax.Array, groups: Groups) -> jax.Array:
    """`h_p · factor[g_p]` of every pair: [P, ..., r] times [G, r, d] gives [P, ..., d]."""
    return _block_by_block(_write, slots, h, factor, groups)
