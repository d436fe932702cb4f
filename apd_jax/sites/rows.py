"""Where the batch and the positions lie among the rows of every use.

The network is traced, abstractly, with one example more, and for every axis of positions with one
position less along it: the axis of a use's rows whose length follows is the one. Where the inputs
have no axis of that length, or the network takes no other length, the axis is recognised by its
length alone. Where no axis follows, or where axes were merged, examples are taken one at a time
instead.
Letters: B batch, T positions (one axis or several), R row axes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from apd_jax.errors import UserError
from apd_jax.sites.program import Program, abstract, trace

PyTree = Any


class Lead(NamedTuple):
    """Which row axes of a use are the batch and the positions; None where no single axis is."""

    batch: int | None
    positions: tuple[int | None, ...] = ()


def batch_size(x: PyTree) -> int:
    """B, the length of the first axis of every input.

    Raises:
      UserError: no inputs, an input without axes, inputs of different lengths or of none.
    """
    shapes = [jax.numpy.shape(leaf) for leaf in jax.tree.leaves(x)]
    if not shapes:
        raise UserError("the inputs hold no arrays; give at least one, [B, ...]")
    if any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        some = ", ".join(map(str, shapes[:4])) + (", ..." if len(shapes) > 4 else "")
        raise UserError(f"inputs need one batch axis in front, [B, ...]; got shapes {some}")
    if shapes[0][0] == 0:
        raise UserError("the batch is empty: give at least one example")
    return shapes[0][0]


def find_leads(
    apply_fn: Callable, params: PyTree, x: PyTree, program: Program, positions: tuple[int, ...] = ()
) -> dict[int, list[Lead]]:
    """Batch and position axes of the rows of every use, by leaf.

    Args:
      apply_fn, params, x, program: the network, and its program at these inputs.
      positions: lengths T of the axes of positions, where these are wanted.
    """
    examples = batch_size(x)
    longer = _traced(apply_fn, params, _resized(x, 0, examples, 1))
    shorter = [
        None if inputs is None else _traced(apply_fn, params, inputs)
        for inputs in (_shortened(x, axis, length) for axis, length in enumerate(positions, 1))
    ]
    leads: dict[int, list[Lead]] = {}
    for leaf, shapes in program.row_shapes.items():
        batches = _followers(shapes, longer, leaf, examples, 1)
        axes = [
            _followers(shapes, other, leaf, length, -1)
            if other is not None  # else of a fixed number of positions: told by their number alone
            else [_only(shape, b, length) for shape, b in zip(shapes, batches, strict=True)]
            for other, length in zip(shorter, positions, strict=True)
        ]
        places = zip(*axes, strict=True) if axes else [()] * len(shapes)
        leads[leaf] = [
            # Unknown where two axes of positions are one axis of the rows.
            Lead(b, t if len(set(t)) == len(t) else (None,) * len(t))
            for b, t in zip(batches, places, strict=True)
        ]
    return leads


def _resized(x: PyTree, axis: int, length: int, by: int) -> PyTree:
    def resize(leaf):
        if len(leaf.shape) <= axis or leaf.shape[axis] != length:
            return leaf
        shape = list(leaf.shape)
        shape[axis] += by
        return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)

    return jax.tree.map(resize, abstract(x))


def _shortened(x: PyTree, axis: int, length: int) -> PyTree | None:
    """The inputs with one position less; None where they have no axis of this length.

    Where no input has the positions at this axis, as channels come first, they are taken for the
    one other axis of this length.
    """
    leaves, tree = jax.tree.flatten(abstract(x))
    if any(leaf.shape[axis : axis + 1] == (length,) for leaf in leaves):
        return _resized(x, axis, length, -1)
    places = [[a for a, n in enumerate(leaf.shape) if a and n == length] for leaf in leaves]
    if not any(len(found) == 1 for found in places):
        return None
    return jax.tree.unflatten(
        tree,
        [
            _resized(leaf, found[0], length, -1) if len(found) == 1 else leaf
            for leaf, found in zip(leaves, places, strict=True)
        ],
    )


def _traced(apply_fn, params, x) -> Program | None:
    """The program at other shapes, or None where the network does not take them."""
    try:
        return trace(apply_fn, params, x)
    except Exception:  # whatever a network says to a shape that it was not written for
        return None


def _followers(shapes, other: Program | None, leaf: int, length: int, by: int) -> list[int | None]:
    """For every use the one row axis of this length that followed the change, if there is one."""
    if other is None or len(other.row_shapes.get(leaf, ())) != len(shapes):
        return [None] * len(shapes)
    return [
        _follower(shape, changed, length, by)
        for shape, changed in zip(shapes, other.row_shapes[leaf], strict=True)
    ]


def _follower(shape, changed, length: int, by: int) -> int | None:
    if len(shape) != len(changed):
        return None
    differing = [a for a, (n, m) in enumerate(zip(shape, changed, strict=True)) if n != m]
    if len(differing) != 1:
        return None
    (axis,) = differing
    return axis if (shape[axis], changed[axis]) == (length, length + by) else None


def _only(shape, batch: int | None, positions: int) -> int | None:
    same = [a for a, n in enumerate(shape) if n == positions and a != batch]
    return same[0] if len(same) == 1 else None
