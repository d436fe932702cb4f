"""Layout: the matrix that a leaf is, read off all of its linear uses.

A leaf's axes are those that are read (contracted with an input), written (free), stacked (one
block of a block-wise product each), or always indexed at constants (one site an index). An axis
that one use divides between two of these is divided in two.
Letters: G stacked blocks, d_in / d_out widths.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.sites.uses import LinearUse
from apd_jax.sites.views import outer_sum


@dataclasses.dataclass(frozen=True)
class Site:
    """A matrix that can be decomposed: a leaf of the parameters, or one index of a stacked leaf.

    Attributes:
      name: path of the leaf, with the index where a leaf holds several sites (`layers/w[3]`).
      path: path of the leaf.
      leaf: its number among the flattened parameters.
      axes: sizes of the leaf's axes, divided where uses divide them, without those of size 1.
      index: (axis, place) for axes that are indexed at constants.
      stacked, reads, writes: the other axes by what they are.
      kinds: kinds of its uses, in order: `"product"`, `"product, transposed"`, ...
    """

    name: str
    path: str
    leaf: int
    axes: tuple[int, ...]
    index: tuple[tuple[int, int], ...]
    stacked: tuple[int, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    kinds: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """(d_in, d_out), or (G, d_in, d_out) for a stack of blocks."""
        blocks = (self._size(self.stacked),) if self.stacked else ()
        return (*blocks, self._size(self.reads), self._size(self.writes))

    def _size(self, axes: Sequence[int]) -> int:
        return math.prod(self.axes[a] for a in axes)

    @property
    def _order(self) -> tuple[int, ...]:
        return (*(a for a, _ in self.index), *self.stacked, *self.reads, *self.writes)

    def matrix(self, leaf: jax.Array) -> jax.Array:
        """The site's matrix in its leaf, [(G,) d_in, d_out]."""
        moved = jnp.transpose(leaf.reshape(self.axes), self._order)
        return moved[tuple(place for _, place in self.index)].reshape(self.shape)

    def insert(self, leaf: jax.Array, matrix: jax.Array) -> jax.Array:
        """The leaf with another matrix at this site; the rest of it stays."""
        moved = jnp.transpose(leaf.reshape(self.axes), self._order)
        block = matrix.astype(leaf.dtype).reshape(moved.shape[len(self.index) :])
        if self.index:
            block = moved.at[tuple(place for _, place in self.index)].set(block)
        return jnp.transpose(block, np.argsort(self._order).tolist()).reshape(leaf.shape)


@dataclasses.dataclass(frozen=True)
class Placement:
    """How one use multiplies by the matrix of its site.

    Attributes:
      site: the site's name.
      transposed: whether the use reads the site's columns, as in a tied decoder.
      stacked: whether the site is a stack of blocks.
      rows, columns, blocks: places in the site's matrix of what the use reads, writes and stacks;
        None where these are all, in order.
      share: share of the site's entries that the use multiplies by.
    """

    site: str
    transposed: bool
    stacked: bool
    rows: tuple[int, ...] | None
    columns: tuple[int, ...] | None
    blocks: tuple[int, ...] | None
    share: float


class NoMatrix(Exception):
    """A leaf's uses don't agree on one matrix; the text says how."""


def find_layout(
    path: str, leaf: int, shape: Sequence[int], uses: Sequence[LinearUse]
) -> tuple[list[Site], list[Placement]]:
    """The sites of a leaf, and where each of its uses lies in them.

    Raises:
      NoMatrix: the uses don't agree.
    """
    # Axes of size 1 have no stride: no use says anything of them, and they may lie anywhere.
    axes = _divided([n for n in shape if n != 1], uses)
    reads, writes, stacked, transposed = _roles(axes, uses)
    # An axis along which no use ever moves is fixed in each of them: a stack of layers, of which
    # every use takes one.
    constant = [a for a in range(len(axes)) if a not in reads | writes | stacked]
    roles: dict[str, Any] = {
        "stacked": tuple(sorted(stacked)),
        "reads": tuple(sorted(reads)),
        "writes": tuple(sorted(writes)),
    }
    sites: dict[str, Site] = {}
    placements = []
    for use, is_transposed in zip(uses, transposed, strict=True):
        origin = np.unravel_index(use.view.offset, axes) if axes else ()
        index = tuple((a, int(origin[a])) for a in constant)
        name = path + "".join(f"[{place}]" for _, place in index)
        kind = use.kind + (", transposed" if is_transposed else "")
        site = sites.get(name) or Site(name, path, leaf, tuple(axes), index, **roles)
        sites[name] = dataclasses.replace(site, kinds=(*site.kinds, kind))
        placements.append(_place(site, use, is_transposed))
    return list(sites.values()), placements


def _digits(axes: Sequence[int], offsets: np.ndarray) -> np.ndarray:
    """Coordinates of flat offsets, [..., number of axes]."""
    if not axes:
        return np.zeros((*np.shape(offsets), 0), np.int64)
    return np.stack(np.unravel_index(offsets, axes), axis=-1)


def _by_role(use: LinearUse) -> dict[str, Sequence[np.ndarray]]:
    return {"read": use.reads, "written": use.writes, "stacked": use.stacked}


def _divided(axes: list[int], uses: Sequence[LinearUse]) -> list[int]:
    """The axes, those divided in two of which a use reads one part and writes the other."""
    axes = list(axes)
    # One axis is divided at a time, since a division changes the coordinates along all axes after
    # it. Every division adds an axis, and no axis is longer than the leaf, so that this ends.
    while True:
        mixed = next(
            (
                (use, a)
                for use in uses
                for a in range(len(axes))
                if len(_roles_of(axes, use, a)) > 1
            ),
            None,
        )
        if mixed is None:
            return axes
        use, axis = mixed
        strides = []
        for role in _roles_of(axes, use, axis):
            places = np.concatenate([_digits(axes, t)[:, axis] for t in _by_role(use)[role]])
            # The greatest common divisor of the places that a role moves to is its stride.
            strides.append((int(np.gcd.reduce(places)), int(places.max())))
        strides.sort()
        # The role of the largest stride is the outer part. The other one must stay within one such
        # stride, and the stride must divide the axis: otherwise the two parts overlap, and there is
        # no matrix of which one is rows and the other columns.
        inner = strides[-1][0]
        if axes[axis] % inner or any(top >= inner for _, top in strides[:-1]):
            names = " and ".join(_roles_of(axes, use, axis))
            raise NoMatrix(f"one of its axes is {names} in the same {use.kind}")
        axes[axis : axis + 1] = [axes[axis] // inner, inner]


def _roles_of(axes: Sequence[int], use: LinearUse, axis: int) -> list[str]:
    return [
        role
        for role, tables in _by_role(use).items()
        if any(_digits(axes, table)[:, axis].any() for table in tables)
    ]


def _roles(
    axes: Sequence[int], uses: Sequence[LinearUse]
) -> tuple[set[int], set[int], set[int], list[bool]]:
    """Axes that are read, written and stacked, and which uses are transposed."""
    reads: set[int] = set()
    writes: set[int] = set()
    stacked: set[int] = set()
    transposed = []
    for use in uses:
        sets: dict[str, set[int]] = {role: set() for role in _by_role(use)}
        for axis in range(len(axes)):
            for role in _roles_of(axes, use, axis):
                sets[role].add(axis)
        # The first use says which way round the matrix is. A later one that reads what is written
        # so far is transposed, as the decoder of a tied embedding.
        straight = not (sets["read"] & writes or sets["written"] & reads)
        transposed.append(not straight)
        mine, other = (reads, writes) if straight else (writes, reads)
        mine |= sets["read"]
        other |= sets["written"]
        stacked |= sets["stacked"]
        if reads & writes or stacked & (reads | writes):
            raise NoMatrix("its uses read, write or stack different axes of it")
    return reads, writes, stacked, transposed


def _place(site: Site, use: LinearUse, transposed: bool) -> Placement:
    axes = site.axes
    origin = _digits(axes, np.array(use.view.offset))
    tables = [t for group in _by_role(use).values() for t in group]
    # The largest coordinates that the use reaches. A flat offset may pass the end of an axis and go
    # on in the next row, as a slice of a reshaped leaf does: this is no block of the matrix.
    reach = origin + sum((_digits(axes, t).max(axis=0) for t in tables), np.zeros_like(origin))
    if (reach >= np.array(axes, np.int64)).any():
        raise NoMatrix("a slice of it does not follow its axes")

    def numbers(tables: Sequence[np.ndarray], of: Sequence[int]) -> np.ndarray:
        places = origin + _digits(axes, outer_sum(tables))
        sizes = [axes[a] for a in of]
        if not of:
            return np.zeros(len(places), np.int64)
        return np.ravel_multi_index(tuple(places[:, a] for a in of), sizes)

    first, second = (site.writes, site.reads) if transposed else (site.reads, site.writes)
    found = (
        numbers(use.reads, first),
        numbers(use.writes, second),
        numbers(use.stacked, site.stacked),
    )
    full = [math.prod(axes[a] for a in of) for of in (first, second, site.stacked)]
    # A component has factors for every block, and the product runs over all of them at once.
    if site.stacked and sorted(found[2]) != list(range(full[2])):
        raise NoMatrix("a product stacks only some of its blocks")
    share = math.prod(len(f) for f in found) / math.prod(full)
    rows, columns, blocks = (
        None if len(f) == n and (f == np.arange(n)).all() else tuple(int(i) for i in f)
        for f, n in zip(found, full, strict=True)
    )
    return Placement(site.name, transposed, bool(site.stacked), rows, columns, blocks, share)
