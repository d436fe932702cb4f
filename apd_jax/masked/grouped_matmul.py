"""Multiply each row by the factors of the component that the row belongs to.

Pairs of example and component are laid out in tables of slots (`grouping`): one batched matrix
product over all tables reads each factor once. Members beyond a group's slots are in further blocks
of the same size, so that the cost depends little on how uneven the groups are.
Letters: P pairs, C components, G groups, S slots of a group, N blocks, r and d the two widths of a
factor.
"""

import functools

import jax
import jax.numpy as jnp

from apd_jax.masked.grouping import Groups
from apd_jax.programs.axes import spread
from apd_jax.sites import Patches

_FEW = 8  # blocks of further members, enough for most batches


@jax.custom_batching.custom_vmap
def _shared_maximum(count: jax.Array) -> jax.Array:
    """The count itself; under `vmap`, the largest count of all runs.

    A `switch` on a batched index becomes a select that runs every branch. The maximum over the runs
    is not batched, so that one branch is still chosen, large enough for all of them.
    """
    return count


@_shared_maximum.def_vmap
def _shared_maximum_of_runs(axis_size, batched, count):
    return jnp.max(count), False


def _with_rest(groups: Groups, first: jax.Array, more) -> jax.Array:
    """`more(first, n)` for the first n blocks of `rest` if any is used, else `first`.

    The bound `(P - 1) // S` on the number of blocks is almost never reached. Computing that many in
    every step would double the work, so a branch computes none, a few, or all.
    """
    size = groups.rest_group.size
    used = _shared_maximum(jnp.sum(groups.rest.taken[:, 0]))  # used blocks come first
    sizes = [n for n in (0, _FEW) if n < size] + [size]
    branches = [functools.partial(more, n=n) if n else lambda first: first for n in sizes]
    return jax.lax.switch(jnp.searchsorted(jnp.array(sizes), used), branches, first)


def _of_pairs(groups: Groups, factor: jax.Array, product, get) -> jax.Array:
    """Compute a product table by table, and collect its rows in the order of the pairs, [P, ...].

    Args:
      groups: the pairs.
      factor: [G, r, d].
      product: `(slots, factors of their groups) -> table`, a row for every slot.
      get: `(table, block, slot) -> rows`, the rows at these places of the table.
    """
    slots = groups.slots.pair.shape[1]
    here = groups.member < slots
    table = product(groups.slots, factor)
    rows = get(table, groups.group, jnp.where(here, groups.member, 0))

    def more(rows, n):
        table = product(groups.rest.start(n), factor[groups.rest_group[:n]])
        others = get(table, jnp.where(here, 0, groups.rest_block), groups.member % slots)
        return jnp.where(spread(here, rows.ndim), rows, others)

    return _with_rest(groups, rows, more)


# Uses of equal shapes, as layers of a network are, share one traced and lowered program.
@jax.jit
def _read_rows(x, factor, groups):
    """`x[example_p] · factor[g_p]ᵀ`: [B, ..., d] and [G, r, d] to [P, ..., r]."""
    first = groups.slots.pair.shape[1] < factor.shape[1]

    def product(slots, factor):
        rows = groups.rows(x, slots)
        # A batched product transposes its second factor: the smaller of the two.
        if first:
            return jnp.einsum("crd,cs...d->crs...", factor, rows)
        return jnp.einsum("cs...d,crd->cs...r", rows, factor)

    def get(table, block, slot):
        return jnp.moveaxis(table[block, :, slot], 1, -1) if first else table[block, slot]

    return _of_pairs(groups, factor, product, get)


@functools.partial(jax.jit, static_argnums=3)
def _write_rows(h, factor, groups, batch_size):
    """`Σ_{p of b} h_p · factor[g_p]`: [P, ..., r] and [G, r, d] to [B, ..., d]."""

    def product(slots, factor):
        table = jnp.einsum("cs...r,crd->cs...d", h[slots.pair], factor)
        example = groups.examples(slots).ravel()  # empty slots are out of bounds: dropped
        return jax.ops.segment_sum(table.reshape(-1, *table.shape[2:]), example, batch_size)

    return _with_rest(
        groups,
        product(groups.slots, factor),
        lambda first, n: first + product(groups.rest.start(n), factor[groups.rest_group[:n]]),
    )


@jax.jit
def _outer(h, x, groups):
    """`Σ_{p of g} h_p ⊗ x[example_p]`: [P, ..., r] and [B, ..., d] to [G, r, d]."""

    def product(slots):
        of_slots = h[slots.pair]
        of_slots = jnp.where(spread(slots.taken, of_slots.ndim), of_slots, 0)
        return jnp.einsum("cs...r,cs...d->crd", of_slots, groups.rows(x, slots))

    return _with_rest(
        groups,
        product(groups.slots),
        lambda first, n: first.at[groups.rest_group[:n]].add(product(groups.rest.start(n))),
    )


@jax.custom_vjp
def _read(x, factor, groups):
    return _read_rows(x, factor, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _write(h, factor, groups, batch_size):
    return _write_rows(h, factor, groups, batch_size)


# Each is the gradient of the other, so they are spelled out to take the same route.
# Automatic differentiation would instead store the slots of every block for the backward pass.
def _read_backward(saved, g):
    x, factor, groups = saved
    return _write_rows(g, factor, groups, len(x)), _outer(g, x, groups), None


def _write_backward(batch_size, saved, g):
    h, factor, groups = saved
    return _read_rows(g, factor, groups), _outer(h, g, groups), None


_read.defvjp(lambda *args: (_read_rows(*args), args), _read_backward)
_write.defvjp(lambda *args: (_write_rows(*args), args[:3]), _write_backward)


def read(x: jax.Array, factor: jax.Array, groups: Groups) -> jax.Array:
    """`x[example_p] · factor[g_p]ᵀ` of every pair.

    Args:
      x: [B, ..., d] rows of all examples; [B, ..., blocks, d] of a stacked site.
      factor: [G, r, d], `groups.factors` of a factor; [G, blocks, r, d] of a stacked site.
      groups: the pairs.

    Returns:
      [P, ..., r], or [P, ..., blocks, r]; zero for pairs without a component.
    """
    if factor.ndim == 3:
        return _read(x, factor, groups)
    return jax.vmap(_read, in_axes=(-2, 1, None), out_axes=-2)(x, factor, groups)


def read_patches(x: Patches, factor: jax.Array, groups: Groups) -> jax.Array:
    """`x[example_p] · factor[g_p]ᵀ` of every pair, for the rows of a convolution, group by group.

    Args:
      x: [B, ..., d] rows of all examples.
      factor, groups: see `read`.

    Returns:
      [P, ..., r], or [P, ..., blocks, r].
    """

    @jax.checkpoint  # else the images of all slots would be kept for the gradient
    def one(group):
        pairs, reads = group
        return x[groups.example[pairs]].read(reads[None])[..., 0, :]

    return _of_pairs(
        groups,
        factor,
        lambda slots, factor: jax.lax.map(one, (slots.pair, factor)),
        lambda table, block, slot: table[block, slot],
    )


def look_up(index: jax.Array, factor: jax.Array, groups: Groups) -> jax.Array:
    """`factor[g_p]` at the index of every pair: [B, ...] and [G, r, d] to [P, ..., r]."""
    index = index[groups.example]
    return factor[spread(groups.group, index.ndim), :, index]


def write(h: jax.Array, factor: jax.Array, groups: Groups, batch_size: int) -> jax.Array:
    """`Σ_p h_p · factor[g_p]` over the pairs of every example.

    Args:
      h: [P, ..., r] in the order of `groups`; [P, ..., blocks, r] of a stacked site.
      factor, groups: see `read`.
      batch_size: B.

    Returns:
      [B, ..., d], or [B, ..., blocks, d].
    """
    if factor.ndim == 3:
        return _write(h, factor, groups, batch_size)
    product = jax.vmap(_write, in_axes=(-2, 1, None, None), out_axes=-2)
    return product(h, factor, groups, batch_size)
