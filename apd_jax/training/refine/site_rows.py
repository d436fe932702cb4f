"""What sites read, as rows, and the second moments of these.

Letters: R rows of the mask, n rows of a site for each of them, G blocks of a stacked site, d_in
width that a site reads.
"""

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import validity
from apd_jax.blocks import summed
from apd_jax.components import Components, Factors
from apd_jax.masked.forward import is_look_up
from apd_jax.programs.axes import spread
from apd_jax.sites import Patches, Records, SiteRecord


def always_transposed(records: Records) -> set[str]:
    """Sites of which every use is transposed, so that they read by their output side."""
    straight = {r.name for r in records.values() if not r.placement.transposed}
    return {record.name for record in records.values()} - straight


def as_read(components: Components, transposed: set[str]) -> Components:
    """Components with every site as it is read; applied again, the components themselves."""
    return {
        name: factors.transpose() if name in transposed else factors
        for name, factors in components.items()
    }


def first_uses(records: Records) -> dict[str, SiteRecord]:
    """Every site's first use that reads by the side that the site reads by."""
    transposed = always_transposed(records)
    found: dict[str, SiteRecord] = {}
    for record in records.values():
        if record.placement.transposed == (record.name in transposed):
            # Later uses of a site see what its first use led to. A site that is read in both
            # directions is taken by its straight uses, since U reads only one side.
            found.setdefault(record.name, record)
    return found


def table(
    record: SiteRecord, factors: Factors, num_rows: int, valid: validity.Valid = None
) -> jax.Array:
    """Rows of a use in the full input width of its site, zeros where they don't count.

    Args:
      record: the use.
      factors: factors of its site.
      num_rows: R.
      valid: bool [B] or [B, T], which examples or positions count; None for all.

    Returns:
      [R, n, d_in]; [G, R, n, d_in] of a stacked site; indices [R, n] of a look-up, d_in for those
      that don't count.
    """
    place = record.placement
    width = (factors.writes if place.transposed else factors.reads).shape[-1]
    x = _counted(_full(record, width), record, width, valid)
    if is_look_up(x):
        return x.reshape(num_rows, -1)
    if factors.stacked:
        x = jnp.moveaxis(x, -2, 0)
        # In the order of the blocks in the site, not in that of the use.
        x = x if place.blocks is None else x[np.argsort(place.blocks)]
    blocks = x.shape[:1] if factors.stacked else ()
    return x.reshape(*blocks, num_rows, -1, x.shape[-1])


def entries(read: jax.Array, weight: jax.Array, transposed: bool) -> jax.Array:
    """What a look-up's indices [R, n] stand for; an index past the last for zeros."""
    table = weight.T if transposed else weight
    length, width = table.shape
    if length <= width:
        return jax.nn.one_hot(read, length)
    return jnp.where((read < length)[..., None], table[jnp.minimum(read, length - 1)], 0)


def second_moments(rows: jax.Array, weights: jax.Array, width: int) -> jax.Array:
    """`Σ_b w_b x_bᵀ x_b`, [(G,) d_in, d_in]; the diagonal [d_in] of a look-up.

    Args:
      rows: see `table`.
      weights: w [R].
      width: d_in.
    """
    if is_look_up(rows):
        return jnp.zeros(width).at[rows].add(weights[:, None], mode="drop")
    if rows.ndim == 4:
        return jax.vmap(lambda one: second_moments(one, weights, width))(rows)
    if rows.shape[1] == 1:
        return (rows[:, 0] * weights[:, None]).T @ rows[:, 0]

    def of_row(row):
        read, weight = row
        return weight * (read.T @ read)

    return summed(of_row, (rows, weights))


def _counted(x: jax.Array, record: SiteRecord, width: int, valid: validity.Valid) -> jax.Array:
    """Rows with zeros where they don't count, or an index past the last, which nothing is at."""
    if valid is None:
        return x
    if is_look_up(x):
        return jnp.where(validity.of_site_rows(valid, x.shape, record.name), x, width)
    own = 1 + record.placement.stacked
    counted = validity.of_site_rows(valid, x.shape[: x.ndim - own], record.name)
    return jnp.where(spread(counted, x.ndim), x, 0)


def _full(record: SiteRecord, width: int) -> jax.Array:
    """Rows in the full input width of the site; a use may read a part of it, or rows repeatedly."""
    places = record.placement.rows
    x = record.x.formed() if isinstance(record.x, Patches) else record.x
    if is_look_up(x):
        return x if places is None else jnp.array(places)[x]
    if places is None:
        return x
    return jnp.zeros((*x.shape[:-1], width)).at[..., jnp.array(places)].add(x)
