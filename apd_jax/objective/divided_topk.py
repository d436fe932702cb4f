"""The batch-wide top-k of scores that are divided over devices, as exact as on one device.

Every device takes the largest entries of its own part. The largest of all are among these, so that
only these candidates are gathered. Ties go to the lower flat index, as in `selection`.
Letters: R rows, C components, K places for pairs.
"""

import jax
import jax.numpy as jnp

from apd_jax.objective.selected import Selected
from apd_jax.programs import partition


def applies(shape: tuple[int, ...]) -> bool:
    """Whether scores [R, C] are divided over devices, evenly."""
    parts = partition.sizes()
    fits = shape[0] % parts[partition.DATA] == 0 and shape[1] % parts[partition.COMPONENTS] == 0
    return fits and partition.number() > 1


def batch_topk(ranked: jax.Array, most: int, count: jax.Array | int) -> Selected:
    """Activate the `count` pairs of highest score.

    Args:
      ranked: [R, C] scores, -inf for what is never selected.
      most: K, a bound on `count` (static).
      count: number of pairs, int32 scalar.

    Returns:
      The mask, and its pairs among K places.
    """
    total = ranked.shape[1]
    values, numbers = _largest(ranked, most)
    place = jnp.maximum(count - 1, 0)
    least, last = values[place], numbers[place]
    mask = (ranked > least) | ((ranked == least) & (_numbers(ranked.shape) <= last))
    mask = mask & (ranked > -jnp.inf) & (count > 0)
    taken = (jnp.arange(most) < count) & (values > -jnp.inf)
    pairs = numbers // total, jnp.where(taken, numbers % total, total)
    return Selected(partition.place(mask, partition.DATA, partition.COMPONENTS), pairs)


def _numbers(shape: tuple[int, ...]) -> jax.Array:
    """The flat index of every entry, int32 [R, C]."""
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    return rows * shape[1] + columns


def _largest(ranked: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """The K largest entries in descending order, ties by ascending flat index: values, indices."""
    own, numbers = _parts(ranked), _parts(_numbers(ranked.shape))
    _, place = jax.lax.top_k(own, min(most, own.shape[-1]))
    own, numbers = (jnp.take_along_axis(of, place, axis=-1) for of in (own, numbers))
    # Negated, so that one ascending sort orders values downwards and indices upwards.
    found = jax.lax.sort((-own.reshape(-1), numbers.reshape(-1)), num_keys=2)
    values, numbers = (partition.place(of[:most]) for of in found)
    return -values, numbers


def _parts(table: jax.Array) -> jax.Array:
    """[R, C] as the parts of the devices, [parts of R, parts of C, entries]."""
    axes = partition.DATA, partition.COMPONENTS
    rows, columns = (partition.sizes()[axis] for axis in axes)
    split = table.reshape(rows, table.shape[0] // rows, columns, -1).swapaxes(1, 2)
    return partition.place(split.reshape(rows, columns, -1), *axes)
