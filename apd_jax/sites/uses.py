"""Kinds of linear use of a parameter: products, convolutions, look-ups.

Each kind says which axes of the weight are read, written and stacked, and how the operand of the
equation becomes rows and its result is made of rows. Rows are [*R, (G), d_in] and [*R, (G), d_out];
those of a look-up are the indices themselves, [*R] integers.
Letters: R row axes, G stacked blocks, d_in / d_out widths of the use.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.sites.patches import Patches, Window
from apd_jax.sites.views import LeafView, row_axis


@dataclasses.dataclass(frozen=True, eq=False)
class LinearUse:
    """One equation that is linear in a view of a leaf.

    Attributes:
      kind: `"product"`, `"convolution"` or `"look-up"`.
      view: the view.
      reads, writes, stacked: tables of the axes that are contracted with the operand, that stay
        free, and that operand and weight have in common.
      row_shape: sizes R of the operand's axes that are neither contracted nor stacked.
      to_rows: the operand to its rows, [*R, (G), d_in]; those of a convolution are `Patches`.
      from_rows: rows [*R, (G), d_out] to the result of the equation.
      settle: the inverse of `from_rows`.
      finish: rows [*R, (G), d_out] to what the equation makes of them, where that depends on more
        than the weight: a look-up outside of the table gives a fixed value.
    """

    kind: str
    view: LeafView
    reads: tuple[np.ndarray, ...]
    writes: tuple[np.ndarray, ...]
    stacked: tuple[np.ndarray, ...]
    row_shape: tuple[int, ...]
    to_rows: Callable[[], jax.Array | Patches]
    from_rows: Callable[[jax.Array], jax.Array]
    settle: Callable[[jax.Array], jax.Array]
    finish: Callable[[jax.Array], jax.Array] = lambda rows: rows


def recognise(eqn: Any, arrays: Sequence[Any], position: int, view: LeafView) -> LinearUse | str:
    """The linear use that an equation makes of a weight, or why it is none.

    Args:
      eqn: the equation.
      arrays: its operands.
      position: which operand is the weight.
      view: the weight as a view of its leaf.
    """
    kind = _KINDS.get(eqn.primitive.name)
    if kind is None:
        return f"{eqn.primitive.name} is not a product, convolution or look-up"
    return kind(eqn, arrays, position, view)


def _permuted(array: jax.Array, order: Sequence[int]) -> jax.Array:
    return array if tuple(order) == tuple(range(len(order))) else jnp.transpose(array, order)


def _reshaped(array: jax.Array, shape: Sequence[int]) -> jax.Array:
    return array if array.shape == tuple(shape) else array.reshape(shape)


def _as_real(x: jax.Array) -> jax.Array:
    # Whole numbers that are multiplied are numbers: as integers they would be indices.
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32)


def _product(eqn, arrays, position, view):
    contracted, batched = eqn.params["dimension_numbers"]
    x = arrays[1 - position]
    x_contracted, w_contracted = contracted[1 - position], contracted[position]
    pairs = list(zip(batched[1 - position], batched[position], strict=True))
    # A weight that is merely repeated along a batch axis is one weight for more rows.
    shared = [x_axis for x_axis, w_axis in pairs if not view.tables[w_axis].any()]
    stacked = [(x_axis, w_axis) for x_axis, w_axis in pairs if x_axis not in shared]
    x_free = [a for a in range(x.ndim) if a not in x_contracted and a not in batched[1 - position]]
    w_free = [a for a in range(len(view.tables)) if a not in (*w_contracted, *batched[position])]
    row_axes, stack_axes = (*shared, *x_free), [x_axis for x_axis, _ in stacked]
    row_shape = tuple(x.shape[a] for a in row_axes)
    depth = math.prod(x.shape[a] for a in x_contracted)
    stack_shape = [math.prod(x.shape[a] for a in stack_axes)] if stacked else []

    def to_rows():
        ordered = _permuted(_as_real(x), (*row_axes, *stack_axes, *x_contracted))
        return _reshaped(ordered, (*row_shape, *stack_shape, depth))

    # The result has the batch axes, then the free axes of the left and of the right operand.
    sizes = [len(view.tables[a]) for a in w_free]
    of_x, of_w = [("x", a) for a in x_free], [("w", a) for a in w_free]
    free = of_x + of_w if position == 1 else of_w + of_x
    # Both orders are lists of labelled axes, and the permutations between them follow from where a
    # label stands, whichever side the weight is on.
    labels = [("x", a) for a in batched[1 - position]] + free
    rows_order = [("x", a) for a in (*row_axes, *stack_axes)] + of_w
    to_result = [rows_order.index(label) for label in labels]
    to_canonical = [labels.index(label) for label in rows_order]
    full = (*row_shape, *(x.shape[a] for a in stack_axes), *sizes)
    flat = (*row_shape, *stack_shape, math.prod(sizes))
    return LinearUse(
        kind="product",
        view=view,
        reads=tuple(view.tables[a] for a in w_contracted),
        writes=tuple(view.tables[a] for a in w_free),
        stacked=tuple(view.tables[w_axis] for _, w_axis in stacked),
        row_shape=row_shape,
        to_rows=to_rows,
        from_rows=lambda y: _permuted(_reshaped(y, full), to_result),
        settle=lambda out: _reshaped(_permuted(out, to_canonical), flat),
    )


def _convolution(eqn, arrays, position, view):
    params = eqn.params
    if position != 1:
        return "a parameter is convolved as if it were the input"
    if params["batch_group_count"] != 1:
        return "a convolution with batch groups"
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    x = jnp.transpose(_as_real(arrays[0]), numbers.lhs_spec)  # [N, channels, *space]
    out_axis, in_axis, *space = numbers.rhs_spec
    window = Window(
        tuple(len(view.tables[a]) for a in space),
        *(params[name] for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")),
        groups,
    )
    out_table = view.tables[out_axis]
    per_group = len(out_table) // groups
    # Output channels come group by group, and each group reads its own input channels: a block-wise
    # product, whose blocks are the groups. As a table of a view it must be an outer sum.
    grid = out_table.reshape(groups, per_group)
    if not np.array_equal(grid, grid[:, :1] + (grid[:1] - grid[0, 0])):
        return "the groups of a convolution don't lie evenly in its parameter"
    result_axes = numbers.out_spec  # where batch, features and space lie in the result
    sizes = eqn.outvars[0].aval.shape
    row_shape = (sizes[result_axes[0]], *(sizes[a] for a in result_axes[2:]))
    blocks = [groups] if groups > 1 else []

    # Rows have space before features, the result its own order.
    order = (0, len(row_shape), *range(1, len(row_shape)))
    return LinearUse(
        kind="convolution",
        view=view,
        reads=(view.tables[in_axis], *(view.tables[a] for a in space)),
        writes=(grid[0] - grid[0, 0],) if groups > 1 else (out_table,),
        stacked=(grid[:, 0],) if groups > 1 else (),
        row_shape=row_shape,
        to_rows=lambda: Patches.of(x, window),
        from_rows=lambda y: jnp.transpose(
            jnp.transpose(y.reshape(*row_shape, -1), order), np.argsort(result_axes)
        ),
        settle=lambda out: jnp.moveaxis(jnp.transpose(out, result_axes), 1, -1).reshape(
            *row_shape, *blocks, per_group
        ),
    )


def _look_up(eqn, arrays, position, view):
    params = eqn.params
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    shape = view.shape
    axis = row_axis(shape, numbers, sizes)
    if position != 0 or axis is None:
        return "a gather that is no look-up along one axis"
    # Slices of a whole axis always start at its beginning.
    given = arrays[1][..., numbers.start_index_map.index(axis)]
    # The index has to be one of the table, also where the network itself fills in another value:
    # `filled` puts that back afterwards.
    index = jnp.clip(given, 0, shape[axis] - 1)
    result = eqn.outvars[0].aval.shape
    offsets = numbers.offset_dims
    order = (*(a for a in range(len(result)) if a not in offsets), *offsets)
    row_shape = index.shape
    written = [a for a in range(len(shape)) if a != axis]
    inner = [result[a] for a in offsets]

    def filled(rows):
        value = params["fill_value"]
        outside = jnp.asarray(jnp.nan if value is None else value, rows.dtype)
        return jnp.where((given == index)[..., None], rows, outside)

    fills = params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP
    return LinearUse(
        kind="look-up",
        view=view,
        reads=(view.tables[axis],),
        writes=tuple(view.tables[a] for a in written),
        stacked=(),
        row_shape=row_shape,
        to_rows=lambda: index,
        from_rows=lambda y: _permuted(y.reshape(*row_shape, *inner), np.argsort(order)),
        settle=lambda out: _permuted(out, order).reshape(*row_shape, -1),
        finish=filled if fills else lambda rows: rows,
    )


def _dynamic_row(eqn, arrays, position, view):
    sizes, shape = eqn.params["slice_sizes"], view.shape
    partial = [a for a in range(len(shape)) if sizes[a] != shape[a]]
    if position != 0 or len(partial) != 1 or sizes[partial[0]] != 1:
        return "a slice at places that depend on the inputs and that is more than one row"
    (axis,) = partial
    index = jnp.clip(arrays[1 + axis], 0, shape[axis] - 1)
    return LinearUse(
        kind="look-up",
        view=view,
        reads=(view.tables[axis],),
        writes=tuple(view.tables[a] for a in range(len(shape)) if a != axis),
        stacked=(),
        row_shape=(),
        to_rows=lambda: index,
        from_rows=lambda y: y.reshape(sizes),
        settle=lambda out: out.reshape(-1),
    )


_KINDS = {
    "dot_general": _product,
    "conv_general_dilated": _convolution,
    "gather": _look_up,
    "dynamic_slice": _dynamic_row,
}
