"""The mesh of devices that a training is divided over, and how its arrays lie on it.

One mesh has the axes `seeds`, `data` and `components`: trainings side by side, the examples of a
batch, and the components of a decomposition. What a step does with them is in `programs.partition`.
Letters: S seeds (with restarts, all trainings side by side), B batch, C components.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from apd_jax.config_fields.values import KINDS, sequence
from apd_jax.errors import UserError
from apd_jax.programs.partition import AXES, COMPONENTS, SEEDS

PyTree = Any

# Parameters of at least so many bytes (large embeddings) are divided over `components` too.
_LARGE = 2**26


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the arrays of a training lie on a mesh.

    Attributes:
      mesh: the devices, of the axes `partition.AXES`.
      num_components: C; None for a training without components.
    """

    mesh: Mesh
    num_components: int | None = None

    def state(self, state: PyTree) -> PyTree:
        """The shardings of a training's state, leaves [S, ...] or [S, C, ...].

        Args:
          state: arrays or `jax.ShapeDtypeStruct`.
        """

        def one(leaf):
            whole = leaf.ndim < 2 or leaf.shape[1] != self.num_components
            return self._sharding(SEEDS) if whole else self._sharding(SEEDS, COMPONENTS)

        return jax.tree.map(one, state)

    def context(self, context: PyTree) -> PyTree:
        """The shardings of what steps read, leaves [S, ...]; large ones are divided further."""
        parts = self.mesh.shape[COMPONENTS]

        def one(leaf):
            large = leaf.ndim > 1 and leaf.size // leaf.shape[0] * leaf.dtype.itemsize >= _LARGE
            divided = parts > 1 and large and leaf.shape[1] % parts == 0
            return self._sharding(SEEDS, COMPONENTS) if divided else self._sharding(SEEDS)

        return jax.tree.map(one, context)

    @property
    def everywhere(self) -> NamedSharding:
        """The sharding of an array that every device holds."""
        return self._sharding()

    @property
    def measured(self) -> NamedSharding:
        """The sharding of metrics [S, ...]; every process reads those of all seeds."""
        return self._sharding() if jax.process_count() > 1 else self._sharding(SEEDS)

    def over_seeds(self, function: Callable[..., Any], shared: int = 0) -> Callable[..., Any]:
        """Divide the arguments [S, ...] of a function over the seeds, except for the last `shared`.

        The other axes of the mesh are left to XLA, and to the constraints of `programs.partition`.
        """
        seeds, everywhere = PartitionSpec(SEEDS), PartitionSpec()

        def call(*arguments):
            return jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=(seeds,) * (len(arguments) - shared) + (everywhere,) * shared,
                out_specs=seeds,
                axis_names={SEEDS},
                check_vma=False,
            )(*arguments)

        return call

    def _sharding(self, *axes: str) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))


def layout(
    num_seeds: int,
    shape: Sequence[int] | None = None,
    *,
    batch_size: int = 1,
    num_components: int | None = None,
) -> Layout | None:
    """Divide a training over the devices of all processes.

    Args:
      num_seeds: S, the number of trainings side by side.
      shape: number of parts along seeds, data and components; by default as many seeds as divide
        evenly, then as many parts of the batch.
      batch_size: number of examples that are computed together: B, or those of a micro-batch.
      num_components: C; None for a training without components.

    Returns:
      The layout; None where a single device has everything.

    Raises:
      UserError: a shape that is not three numbers, does not divide the sizes, needs more devices
        than there are, or leaves out a process.
    """
    if shape is None:
        shape = _default_shape(num_seeds, batch_size)
    else:
        shape = _checked_shape(shape, (num_seeds, batch_size, num_components))
    needed = math.prod(shape)
    if needed == 1 and jax.process_count() == 1:
        return None
    devices = jax.devices()[:needed]
    _check_processes(shape, devices)
    mesh = Mesh(np.array(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return Layout(mesh, num_components)


def without_seeds(shape: Sequence[int] | None, batch_size: int) -> tuple[int, int, int] | None:
    """A mesh for a single training on the same devices, as far as they divide its batch."""
    if shape is None:
        return None
    return 1, math.gcd(shape[0] * shape[1], batch_size), shape[2]


def layout_of_targets(num_seeds: int, shape: Sequence[int] | None = None) -> Layout | None:
    """Divide the training of S target networks, which has no components, over the same devices."""
    total = jax.device_count() if shape is None else math.prod(shape)
    seeds = num_shares(num_seeds, total)
    if jax.process_count() == 1:
        return layout(num_seeds, (seeds, 1, 1))
    seeds = math.gcd(num_seeds, total)
    return layout(num_seeds, (seeds, total // seeds, 1), batch_size=total // seeds)


def num_shares(size: int, num_devices: int) -> int:
    """The largest number of devices, up to `num_devices`, that divides a size evenly."""
    return max(n for n in range(1, min(size, num_devices) + 1) if size % n == 0)


def _default_shape(num_seeds: int, batch_size: int) -> tuple[int, int, int]:
    """Seeds first, then data, as far as the sizes divide evenly."""
    total = jax.device_count()
    if jax.process_count() == 1:
        seeds = num_shares(num_seeds, total)
        return seeds, num_shares(batch_size, total // seeds), 1
    seeds = math.gcd(num_seeds, total)  # every process has to take part
    return seeds, math.gcd(batch_size, total // seeds), 1


def _three_numbers(given: Any) -> tuple[int, ...]:
    """The shape as Python's numbers; raises UserError unless they are three whole ones."""
    shape = sequence(np.asarray(given) if isinstance(given, jax.Array) else given)
    whole = isinstance(shape, tuple) and all(KINDS[int](n) and n >= 1 for n in shape)
    if not whole or len(shape) != len(AXES):
        raise UserError(
            f"mesh must be three numbers of at least 1, for {', '.join(AXES)}, each whole, got "
            f"{given!r:.200}"
        )
    return shape


def _checked_shape(given: Any, sizes: tuple[int, int, int | None]) -> tuple[int, ...]:
    """The shape as Python's numbers.

    Raises:
      UserError: it is not three whole numbers that divide the sizes and fit the devices.
    """
    shape = _three_numbers(given)
    names = ("seeds (times restarts)", "examples of a batch (or of a micro-batch)", "components")
    for number, size, name in zip(shape, sizes, names, strict=True):
        if size is not None and size % number:
            fitting = [n for n in range(1, min(size, 64) + 1) if size % n == 0]
            raise UserError(
                f"mesh={shape} divides {size} {name} by {number}, which leaves a remainder: "
                f"{', '.join(map(str, fitting))} would divide them evenly"
            )
    there = jax.device_count()
    if math.prod(shape) > there:
        raise UserError(
            f"mesh={shape} needs {math.prod(shape)} devices, and there are {there}: choose smaller "
            "numbers, or leave mesh out"
        )
    return shape


def _check_processes(shape: Sequence[int], devices: Sequence[Any]) -> None:
    idle = set(range(jax.process_count())) - {device.process_index for device in devices}
    if idle:
        raise UserError(
            f"mesh={tuple(shape)} leaves out process(es) {sorted(idle)}: there are "
            f"{jax.device_count()} devices in {jax.process_count()} processes, and all have to "
            "take part; choose mesh=(seeds, data, components) with that product, or start fewer "
            "processes"
        )


def split_cpu(num_seeds: int, shape: Sequence[int] | None = None) -> None:
    """Split the CPU into several JAX devices, so that seeds are computed on separate cores.

    Small programs gain little from more than one core each. Call this before JAX computes anything.
    It has no effect on other backends, or if the user has set the number of devices. With several
    processes, each keeps one device.

    Args:
      num_seeds: number of trainings side by side.
      shape: the mesh that is asked for, which then decides the number of devices.

    Raises:
      UserError: a shape that is not three numbers; or JAX has no device, for instance because
        JAX_PLATFORMS names a missing one.
    """
    shape = None if shape is None else _three_numbers(shape)
    chosen = "JAX_NUM_CPU_DEVICES" in os.environ or jax.distributed.is_initialized()
    if not chosen and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        count = math.prod(shape) if shape else num_shares(num_seeds, os.cpu_count() or 1)
        jax.config.update("jax_num_cpu_devices", max(count, 1))
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where a plugin is missing
        reason = " ".join(str(error).split()) or "its plugin is not installed"
        raise UserError(
            f"JAX finds no device: {reason} (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')!r})"
        ) from error


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Put arrays on the devices of a mesh; every process has the same values of all of them.

    Args:
      tree: arrays of JAX or NumPy.
      shardings: one sharding, or one for each leaf; None for one device.
    """
    if jax.process_count() == 1 or shardings is None:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(_put_part, tree, shardings)


def placed(shapes: PyTree, shardings: PyTree | None) -> PyTree:
    """Shapes and types with a sharding for each; as they are without shardings."""
    if shardings is None:
        return shapes
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), shapes, shardings
    )


def _put_part(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Put this process's part of an array on its devices; `device_put` would compare all parts."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put_part(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])


def gathered(layout: Layout | None, tree: PyTree) -> PyTree:
    """The arrays of a layout on one device of this process; all processes must call this."""
    if layout is None:
        return tree
    if jax.process_count() == 1:
        return jax.device_put(tree, jax.devices()[0])
    whole = jax.jit(lambda tree: tree, out_shardings=layout.everywhere)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole(tree))
