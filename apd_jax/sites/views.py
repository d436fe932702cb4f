"""Views: which entries of a parameter leaf stand where in a value of the traced program.

Reshapes, transposes, slices and their like only move the entries of a leaf about. Entry
`[i, j, ...]` of the value is entry `offset + t_0[i] + t_1[j] + ...` of the flattened leaf, so that
a view is one short table of offsets an axis.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

_MANTISSA = jnp.finfo(jnp.bfloat16).nmant  # coarser numbers are no longer the weight's own


@dataclasses.dataclass(frozen=True, eq=False)
class LeafView:
    """A value whose entries are entries of one leaf.

    Attributes:
      leaf: number of the leaf among the flattened parameters.
      offset: place of the value's first entry in the flattened leaf.
      tables: for every axis of the value the offsets that are added along it; the least is 0.
    """

    leaf: int
    offset: int
    tables: tuple[np.ndarray, ...]

    @classmethod
    def whole(cls, leaf: int, shape: Sequence[int]) -> "LeafView":
        """The leaf itself."""
        strides = np.cumprod([1, *shape[:0:-1]])[::-1] if shape else ()
        tables = (np.arange(n) * stride for n, stride in zip(shape, strides, strict=True))
        return cls(leaf, 0, tuple(tables))

    def with_tables(self, tables: Sequence[np.ndarray]) -> "LeafView":
        """The view with other tables, each brought to a least offset of 0."""
        least = [int(table.min()) if table.size else 0 for table in tables]
        moved = tuple(table - low for table, low in zip(tables, least, strict=True))
        return LeafView(self.leaf, self.offset + sum(least), moved)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return tuple(len(table) for table in self.tables)


def outer_sum(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Offsets of all combinations of entries, the last table running fastest; [product]."""
    total = np.zeros(1, np.int64)
    for table in tables:
        total = (total[:, None] + table).reshape(-1)
    return total


def join(parts: Sequence[LeafView | None], axis: int) -> LeafView | None:
    """The parts concatenated along an axis; None unless they are parts of one leaf in a grid.

    Apart from their place along the axis they must be the same entries of the leaf.
    """
    # Zeros or activations between the parts would not be entries of the leaf.
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts) or any(p.leaf != known[0].leaf for p in known):
        return None
    first = known[0]
    for part in known[1:]:
        for a, (table, own) in enumerate(zip(part.tables, first.tables, strict=True)):
            if a != axis and not np.array_equal(table, own):
                return None
    tables = list(first.tables)
    tables[axis] = np.concatenate([part.offset + part.tables[axis] for part in known])
    return LeafView(first.leaf, 0, ()).with_tables(tables)


def stack(parts: Sequence[LeafView | None], axis: int = 0) -> LeafView | None:
    """The parts along a new axis, as `join`."""

    def placed(part):
        tables = list(part.tables)
        tables.insert(axis, np.zeros(1, np.int64))
        return LeafView(part.leaf, part.offset, tuple(tables))

    return join([part and placed(part) for part in parts], axis)


def _transpose(view: LeafView, *, permutation, **_):
    return view.with_tables([view.tables[axis] for axis in permutation])


def _squeeze(view: LeafView, *, dimensions, **_):
    return view.with_tables([t for axis, t in enumerate(view.tables) if axis not in dimensions])


def _broadcast(view: LeafView, *, shape, broadcast_dimensions, **_):
    # Along a new axis the same entries repeat: the offset does not change.
    tables = [np.zeros(size, np.int64) for size in shape]
    for axis, table in zip(broadcast_dimensions, view.tables, strict=True):
        tables[axis] = tables[axis] + table
    return view.with_tables(tables)


def _slice(view: LeafView, *, start_indices, limit_indices, strides, **_):
    steps = strides or (1,) * len(start_indices)
    bounds = zip(start_indices, limit_indices, steps, strict=True)
    cut = [t[a:b:s] for t, (a, b, s) in zip(view.tables, bounds, strict=True)]
    return view.with_tables(cut)


def _reverse(view: LeafView, *, dimensions, **_):
    tables = [t[::-1] if axis in dimensions else t for axis, t in enumerate(view.tables)]
    return view.with_tables(tables)


def _split(view: LeafView, *, sizes, axis, **_):
    ends = np.cumsum(sizes)
    starts = ends - np.asarray(sizes)
    pieces = []
    for start, end in zip(starts, ends, strict=True):
        tables = list(view.tables)
        tables[axis] = tables[axis][start:end]
        pieces.append(view.with_tables(tables))
    return pieces


def _unstack(view: LeafView, *, axis, **_):
    whole = view.tables
    return [
        LeafView(view.leaf, view.offset + int(place), (*whole[:axis], *whole[axis + 1 :]))
        for place in whole[axis]
    ]


def _reshape(view: LeafView, *, new_sizes, dimensions=None, **_):
    if dimensions is not None or 0 in view.shape:
        return None
    tables: list[np.ndarray] = []
    offset = 0
    # A reshape keeps the order of entries, so that it acts on each shortest run of axes that hold
    # equally many entries by itself.
    for old, new in _matching_groups(view.shape, new_sizes):
        # The offsets along the old axes together, then laid out along the new ones. They form a
        # view only if each new axis adds the same offsets wherever the others stand: then the lines
        # through the corner tell all of them.
        merged = outer_sum([view.tables[axis] for axis in old])
        grid = merged.reshape([new_sizes[axis] for axis in new])
        corner = grid[(0,) * grid.ndim] if grid.ndim else merged[0]
        lines = [
            grid[tuple(slice(None) if a == axis else 0 for a in range(grid.ndim))] - corner
            for axis in range(grid.ndim)
        ]
        if not np.array_equal(outer_sum(lines) + corner, merged):
            return None  # the entries don't lie on a grid of the new axes
        tables += lines
        offset += int(corner)
    return LeafView(view.leaf, view.offset + offset, ()).with_tables(tables)


def _matching_groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of old axes and runs of new axes that hold equally many entries, as short as can be."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        olds: list[int] = []
        news: list[int] = []
        n = m = 1
        while not olds and not news or n != m:
            if (n <= m and i < len(old)) or j == len(new):
                n *= old[i]
                olds.append(i)
                i += 1
            else:
                m *= new[j]
                news.append(j)
                j += 1
        groups.append((olds, news))
    return groups


def _dynamic_slice(view: LeafView, *starts: Any, slice_sizes, **_):
    # Only where the program names the places itself; JAX then moves them inside of the leaf.
    if any(start is None for start in starts):
        return None
    tables = []
    for table, start, size in zip(view.tables, starts, slice_sizes, strict=True):
        first = min(max(int(start), 0), len(table) - size)
        tables.append(table[first : first + size])
    return view.with_tables(tables)


def _tile(view: LeafView, *, reps, **_):
    return view.with_tables([np.tile(t, n) for t, n in zip(view.tables, reps, strict=True)])


def _gather(view: LeafView, index: Any, *, dimension_numbers, slice_sizes, **_):
    # Only rows along one axis, at places that the program names itself.
    numbers, shape = dimension_numbers, view.shape
    axis = row_axis(shape, numbers, slice_sizes)
    if axis is None or index is None:
        return None
    places = np.asarray(index)[..., numbers.start_index_map.index(axis)]
    if places.size == 0 or places.min() < 0 or places.max() >= shape[axis]:
        return None
    others = [a for a in range(len(shape)) if a != axis]
    rows = [view.tables[axis][places.reshape(-1)], *(view.tables[a] for a in others)]
    sizes = (*places.shape, *(shape[a] for a in others))
    found = _reshape(view.with_tables(rows), new_sizes=sizes)
    if found is None:
        return None
    offsets = numbers.offset_dims
    order = (*(a for a in range(len(sizes)) if a not in offsets), *offsets)
    return _transpose(found, permutation=np.argsort(order))


def row_axis(shape: Sequence[int], numbers: Any, sizes: Sequence[int]) -> int | None:
    """The axis along which a gather takes single rows; None where it takes something else.

    Args:
      shape: shape of its operand.
      numbers, sizes: its dimension numbers and slice sizes.
    """
    if numbers.operand_batching_dims:
        return None
    partial = [a for a in range(len(shape)) if sizes[a] != shape[a]]
    axis = next(iter((*partial, *numbers.collapsed_slice_dims)), None)
    if axis is None or len(partial) > 1 or axis not in numbers.start_index_map or sizes[axis] != 1:
        return None
    return axis if all(a == axis for a in numbers.collapsed_slice_dims) else None


def _same(view: LeafView, **_):
    return view


def _converted(view: LeafView, *, new_dtype, **_):
    """Rounded at most as far as a network's computing in half precision rounds."""
    real = jnp.issubdtype(new_dtype, jnp.floating)
    return view if real and jnp.finfo(new_dtype).nmant >= _MANTISSA else None


def _reduced(view: LeafView, *, mantissa_bits, **_):
    return view if mantissa_bits >= _MANTISSA else None


# How an equation moves the entries of its first operand.
_MOVES: dict[str, Callable] = {
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "rev": _reverse,
    "split": _split,
    "unstack": _unstack,
    "reshape": _reshape,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "tile": _tile,
    "convert_element_type": _converted,
    "copy": _same,
    "name": _same,
    "copy_p": _same,
    "reduce_precision": _reduced,
    "sharding_constraint": _same,
}


def follow(name: str, view: LeafView, others: Sequence[Any], params: dict[str, Any]):
    """The views that an equation makes of a view, or None where it does more than move entries.

    Args:
      name: name of the equation's primitive.
      view: its first operand.
      others: its further operands, numbers (of a gather, its index) where these are known while
        tracing, else None.
      params: parameters of the equation.

    Returns:
      A list of views, one for every result, or None.
    """
    if name not in _MOVES:
        return None
    moved = _MOVES[name](view, *others, **params)
    return [moved] if isinstance(moved, LeafView) else moved
