"""Multiply each row by the factors of the component that the row belongs to.

Only `P = floor(k·B)` of the B·C (example, component) pairs are active. Sorted by component they
fall into `G = min(C, P)` groups. XLA needs fixed shapes, and how many pairs a group has is known
only at run time, so every group gets a table of S slots: one batched matrix product over all tables
then reads each factor once. The pairs that do not fit into their group's table fill further blocks
of S slots, of which all groups together need at most `(P - 1) // S`. The result therefore does not
depend on S, and the cost depends little on how uneven the groups are.
Letters: P pairs, C components, G groups, S slots of a group, N blocks, r and d the two widths of a
factor.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from apd_jax.errors import UserError
from apd_jax.sites import Patches


class Slots(NamedTuple):
    """Blocks of pairs that belong to one group each.

    Attributes:
      pair: int32 [N, S], the pair in every slot (any one in an empty slot).
      taken: bool [N, S], whether the slot holds a pair.
    """

    pair: jax.Array
    taken: jax.Array

    def start(self, n: int) -> "Slots":
        """The first n blocks."""
        return Slots(self.pair[:n], self.taken[:n])


class Groups(NamedTuple):
    """Active pairs sorted by component.

    Attributes:
      example: int32 [P], the example of every pair; B for a pair without a component.
      group: int32 [P], the group of every pair, ascending.
      member: int32 [P], the place of every pair in its group.
      owner: int32 [G], the component of a group (any one for groups without pairs); None where
        every component has a group, in order.
      slots: [G, S], the first S members of every group.
      rest: [N, S], blocks of further members.
      rest_group: int32 [N], the group of every block of `rest`, ascending.
      rest_block: int32 [P], the block in `rest` of every pair beyond its group's slots.
    """

    example: jax.Array
    group: jax.Array
    member: jax.Array
    owner: jax.Array | None
    slots: Slots
    rest: Slots
    rest_group: jax.Array
    rest_block: jax.Array

    def factors(self, factor: jax.Array) -> jax.Array:
        """The factors of the groups' components, [C, r, d] to [G, r, d]."""
        return factor if self.owner is None else factor[self.owner]


def group_pairs(
    pairs: tuple[jax.Array, jax.Array],
    batch_size: int,
    num_components: int,
    slots: int | None = None,
) -> Groups:
    """Sort (examples, components) pairs by component.

    Args:
      pairs: (examples [P], components [P]), as the selection functions give them. A component
        number of C stands for none: such a pair adds nothing.
      batch_size: B.
      num_components: C.
      slots: S (any number gives the same results); `num_slots` if None.

    Raises:
      UserError: B·C of 2³¹ or more, since pairs are numbered.
    """
    if batch_size * (num_components + 1) > 2**31:
        raise UserError(
            f"the grouped masked pass numbers its pairs: batch size times components must be below "
            f"2**31, got {batch_size} * {num_components}; use masked_route='dense'"
        )
    # One number a pair: sorting a single array is many times faster than sorting with an index.
    component, example = jnp.divmod(jnp.sort(pairs[1] * batch_size + pairs[0]), batch_size)
    # A pair without a component sorts last, takes part in the last group, and is dropped by the
    # sum over examples, for which its example is out of bounds.
    example = jnp.where(component < num_components, example, batch_size)
    component = jnp.minimum(component, num_components - 1)
    start, count, group, owner = _runs(component, num_components)
    if slots is None:
        slots = num_slots(component.size, num_components)
    member = jnp.arange(component.size) - start[group]
    blocks = jnp.maximum(-(-count // slots) - 1, 0)  # of further members, a group
    end = jnp.cumsum(blocks)
    block = jnp.arange((component.size - 1) // slots)
    rest_group = jnp.searchsorted(end, block, side="right", method="compare_all")
    rest_group = jnp.minimum(rest_group, len(count) - 1)
    begin = slots * (1 + block - (end - blocks)[rest_group])
    return Groups(
        example,
        group,
        member,
        owner,
        _slots(start, count, slots, component.size),
        _slots(start[rest_group] + begin, count[rest_group] - begin, slots, component.size),
        rest_group,
        (end - blocks)[group] + member // slots - 1,
    )


def _runs(
    component: jax.Array, num_components: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Divide sorted components [P] into groups: start and count of each, group of each pair, owner.

    With at least C pairs every component has a group, empty or not, and factors need no gather.
    With fewer, only components that occur get one, and only their factors are read.
    """
    if component.size >= num_components:
        start = jnp.searchsorted(component, jnp.arange(num_components + 1), method="compare_all")
        return start[:-1], jnp.diff(start), component, None
    first = jnp.concatenate([jnp.ones(1, bool), component[1:] != component[:-1]])
    (start,) = jnp.nonzero(first, size=component.size + 1, fill_value=component.size)
    start, owner = start[:-1], component[jnp.minimum(start[:-1], component.size - 1)]
    return start, jnp.diff(start, append=component.size), jnp.cumsum(first) - 1, owner


def _slots(start: jax.Array, count: jax.Array, slots: int, num_pairs: int) -> Slots:
    """Slots of blocks that start at given pairs and have `count` pairs left to hold."""
    place = jnp.arange(slots)
    return Slots(jnp.minimum(start[:, None] + place, num_pairs - 1), place < count[:, None])


def num_slots(num_pairs: int, num_components: int) -> int:
    """Slots per group: the mean load plus three Poisson deviations, rounded up to eights.

    Where loads are small, most of the time goes into reading the factors, so spare slots cost
    little. Where loads are large, three deviations add little to the mean.
    """
    mean = num_pairs / min(num_pairs, num_components)
    return min(8 * math.ceil((mean + 3 * math.sqrt(mean)) / 8), num_pairs)


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
