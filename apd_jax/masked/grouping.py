"""Active pairs sorted by component and laid out in slots, so that shapes are fixed.

Only `P = floor(k·B)` of the B·C (example, component) pairs are active. Sorted by component they
fall into `G = min(C, P)` groups. XLA needs fixed shapes, and how many pairs a group has is known
only at run time, so every group gets a table of S slots. The pairs that do not fit into their
group's table fill further blocks of S slots, of which all groups together need at most
`(P - 1) // S`. Results therefore do not depend on S.
Letters: B batch, P pairs, C components, G groups, S slots of a group, N blocks, r and d the two
widths of a factor.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from apd_jax.errors import UserError


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

    def examples(self, slots: Slots) -> jax.Array:
        """The example in every slot, [N, S]; out of bounds in empty slots."""
        return jnp.where(slots.taken, self.example[slots.pair], jnp.iinfo(jnp.int32).max)

    def rows(self, x: jax.Array, slots: Slots) -> jax.Array:
        """The rows of the examples in every slot, [B, ...] to [N, S, ...]; zeros in empty slots."""
        return x.at[self.examples(slots)].get(mode="fill", fill_value=0)


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
