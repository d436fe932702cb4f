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
    del axis_size, batched
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
        return jnp.where(here.reshape(here.shape + (1,) * (rows.ndim - 1)), rows, others)

    return _with_rest(groups, rows, more)


# Uses of equal shapes, as layers of a network are, share one traced and lowered program.
@jax.jit
def _read_pairs(x, factor, groups):
    # The rows of the table come before its slots: a table in the order of what is asked for
    # would transpose all factors, which takes longer than the product.
    return _of_pairs(
        groups,
        factor,
        lambda slots, factor: jnp.einsum("crd,cs...d->crs...", factor, x[slots.pair]),
        lambda table, block, slot: jnp.moveaxis(table[block, :, slot], 1, -1),
    )


@jax.jit
def _write_pairs(h, factor, groups):
    return _of_pairs(
        groups,
        factor,
        lambda slots, factor: jnp.einsum("cs...r,crd->cs...d", h[slots.pair], factor),
        lambda table, block, slot: table[block, slot],
    )


@jax.jit
def _outer_pairs(h, x, groups):
    def product(slots):
        taken = slots.taken.reshape(slots.taken.shape + (1,) * (h.ndim - 1))
        rows = jnp.where(taken, h[slots.pair], 0)
        return jnp.einsum("cs...r,cs...d->crd", rows, x[slots.pair])

    return _with_rest(
        groups,
        product(groups.slots),
        lambda first, n: first.at[groups.rest_group[:n]].add(product(groups.rest.start(n))),
    )


@jax.custom_vjp
def _read(x, factor, groups):
    return _read_pairs(x, factor, groups)


@jax.custom_vjp
def _write(h, factor, groups):
    return _write_pairs(h, factor, groups)


# The gradients are products over the same groups, so they are spelled out to take the same route.
# Automatic differentiation would instead store the slots of every block for the backward pass.
def _read_backward(saved, g):
    x, factor, groups = saved
    return _write_pairs(g, factor, groups), _outer_pairs(g, x, groups), None


def _write_backward(saved, g):
    h, factor, groups = saved
    return _read_pairs(g, factor, groups), _outer_pairs(h, g, groups), None


_read.defvjp(lambda *args: (_read_pairs(*args), args), _read_backward)
_write.defvjp(lambda *args: (_write_pairs(*args), args), _write_backward)


def _block_by_block(product, rows, factor, groups):
    """Apply a product of rows [P, ..., G, width] to every block of a stacked site."""
    if factor.ndim == 3:
        return product(rows, factor, groups)
    return jax.vmap(product, in_axes=(-2, 1, None), out_axes=-2)(rows, factor, groups)


def read(x: jax.Array, factor: jax.Array, groups: Groups) -> jax.Array:
    """`x_p · factor[g_p]ᵀ` of every pair.

    Args:
      x: [P, ..., d] rows in the order of `groups`; [P, ..., blocks, d] of a stacked site.
      factor: [G, r, d], `groups.factors` of a factor; [G, blocks, r, d] of a stacked site.
      groups: the pairs.

    Returns:
      [P, ..., r], or [P, ..., blocks, r].
    """
    return _block_by_block(_read, x, factor, groups)


def read_patches(x: Patches, factor: jax.Array, groups: Groups) -> jax.Array:
    """`x_p · factor[g_p]ᵀ` of every pair, for the rows of a convolution, group by group.

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
    """`factor[g_p]` at the indices of every pair: [P, ...] and [G, r, d] to [P, ..., r]."""
    group = groups.group.reshape(-1, *(1,) * (index.ndim - 1))
    return factor[group, :, index]


def write(h: jax.Array, factor: jax.Array, groups: Groups) -> jax.Array:
    """`h_p · factor[g_p]` of every pair: [P, ..., r] times [G, r, d] gives [P, ..., d]."""
    return _block_by_block(_write, h, factor, groups)
