"""How the arrays of a step are divided over the devices of a mesh, while the step is traced.

A training on several devices traces its steps within a mesh of the axes `AXES`
(`runtime.mesh.Layout`). The functions here say which axis of an array lies along which axis of the
mesh; XLA divides everything else to fit. Without such a mesh, or if it divides only seeds, they
return their arguments unchanged, so that programs for one device contain no constraints.
Letters: B batch, C components.
"""

import math
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

PyTree = Any

SEEDS, DATA, COMPONENTS = AXES = ("seeds", "data", "components")


def sizes() -> dict[str, int]:
    """Numbers of parts along `DATA` and `COMPONENTS` of the mesh that is traced for."""
    mesh = jax.sharding.get_abstract_mesh()
    # A mesh of the caller has other axes, or divides the seeds otherwise.
    if mesh.axis_names != AXES or mesh.axis_types[0] != AxisType.Manual:
        return {DATA: 1, COMPONENTS: 1}
    return {name: mesh.shape[name] for name in (DATA, COMPONENTS)}


def number() -> int:
    """Number of devices that share a single training."""
    return math.prod(sizes().values())


def place(leaf: jax.Array, *axes: str | None) -> jax.Array:
    """Divide the leading axes of an array over axes of the mesh; other axes are not divided.

    Args:
      leaf: the array.
      *axes: for each of its leading axes `DATA`, `COMPONENTS`, or None for no division.
    """
    if number() == 1:
        return leaf
    sharding = NamedSharding(jax.sharding.get_abstract_mesh(), PartitionSpec(*axes))
    return jax.lax.with_sharding_constraint(leaf, sharding)


def over_data(tree: PyTree, *, blocks: bool = False) -> PyTree:
    """Divide arrays [B, ...], or n blocks [n, B, ...], over `DATA` if it divides B evenly."""
    axes = (None, DATA) if blocks else (DATA,)

    def one(leaf):
        fits = leaf.ndim >= len(axes) and leaf.shape[len(axes) - 1] % sizes()[DATA] == 0
        return place(leaf, *axes) if fits else leaf

    return jax.tree.map(one, tree)


def over_components(tree: PyTree, num_components: int) -> PyTree:
    """Divide the arrays [C, ...] of a tree over `COMPONENTS`; all others are on all devices."""

    def one(leaf):
        divided = leaf.ndim > 0 and leaf.shape[0] == num_components
        return place(leaf, COMPONENTS) if divided else place(leaf)

    return jax.tree.map(one, tree)


def shares(tree: PyTree, count: int) -> PyTree:
    """Divide arrays [C, ...] into n equal shares, [n, C // n, ...], each spread over all devices.

    On one device a share is a run of consecutive components. On several it has components of every
    device, since otherwise the other devices would be idle.
    """
    parts = sizes()[COMPONENTS]

    def one(leaf):
        if parts == 1:
            return leaf.reshape(count, -1, *leaf.shape[1:])
        split = leaf.reshape(parts, count, -1, *leaf.shape[1:]).swapaxes(0, 1)
        return place(split.reshape(count, -1, *leaf.shape[1:]), None, COMPONENTS)

    return jax.tree.map(one, tree)


def joined_shares(stacked: jax.Array) -> jax.Array:
    """The inverse of `shares`."""
    parts = sizes()[COMPONENTS]
    count, *rest = stacked.shape[0], *stacked.shape[2:]
    if parts == 1:
        return stacked.reshape(-1, *rest)
    split = stacked.reshape(count, parts, -1, *rest).swapaxes(0, 1)
    return place(split.reshape(-1, *rest), COMPONENTS)
