"""Linear algebra of the moves: truncation of sums to rank m, and partition of what a site reads.

Functions of one site's factors take those of one matrix, [C, m, d]; `by_block` runs them on all
blocks of a stacked site at once.
Letters: C components, G blocks of a stacked site, m rank, d_in / d_out site widths, R rows of the
mask.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from apd_jax.components import Components, Factors
from apd_jax.programs import linalg
from apd_jax.runtime.loop import pick, stack

RIDGE = 1e-3


def by_block(function: Callable, factors: Factors, *moments: jax.Array) -> Any:
    """`function(factors, *moments)`, mapped over the blocks of a stacked site.

    Args:
      function: function of factors [C, m, d] and of second moments to arrays [C, ...].
      factors: factors of a site, [C, (G,) m, d].
      *moments: second moments of what the site reads, as `Activity.moments` gives them.
    """
    if not factors.stacked:
        return function(factors, *moments)
    return jax.vmap(function, in_axes=(1, *(0 for _ in moments)), out_axes=1)(factors, *moments)


def each_site(
    function: Callable, components: Components, *moments: dict[str, jax.Array]
) -> Components:
    """`function(factors, *moments)` at every site.

    Args:
      function: function of factors [C, m, d] and of second moments to such factors.
      components: `{site: Factors}`.
      *moments: second moments of what each site reads, as `Activity.moments` gives them.
    """
    return alike(functools.partial(by_block, function), components, *moments)


def alike(function: Callable, *of_sites: dict[str, Any]) -> dict[str, Any]:
    """`{site: function(*values)}`, compiled once for all sites whose values have the same shapes.

    Args:
      function: function of the values of a site.
      *of_sites: `{site: value}`, pytrees of arrays.
    """
    groups: dict[Any, dict[str, Any]] = {}
    for site in of_sites[0]:
        values = tuple(each[site] for each in of_sites)
        leaves, structure = jax.tree.flatten(values)
        shapes = structure, *((leaf.shape, leaf.dtype) for leaf in leaves)
        groups.setdefault(shapes, {})[site] = values
    found: dict[str, Any] = {}
    for group in groups.values():
        if len(group) == 1:
            found |= {site: function(*values) for site, values in group.items()}
            continue
        stacked = jax.lax.map(lambda values: function(*values), stack(list(group.values())))
        found |= {site: pick(stacked, number) for number, site in enumerate(group)}
    return {site: found[site] for site in of_sites[0]}


def compress(reads: jax.Array, writes: jax.Array, rank: int) -> Factors:
    """The best factors of rank m for `readsᵀ writes`, without forming the matrix.

    `readsᵀ = Q_in R_in` and `writesᵀ = Q_out R_out`, so that `readsᵀ writes = Q_in (R_in R_outᵀ)
    Q_outᵀ`: only the n x n core needs a singular value decomposition.

    Args:
      reads: [n, d_in].
      writes: [n, d_out].
      rank: m.

    Returns:
      Factors with reads [m, d_in] and writes [m, d_out], each term's norm shared evenly.
    """
    q_in, r_in = linalg.qr(reads.T)
    q_out, r_out = linalg.qr(writes.T)
    u, s, vt = linalg.svd(r_in @ r_out.T)
    return Factors.from_svd(q_in @ u, s, vt @ q_out.T, rank)


def add_into(factors: Factors, into: jax.Array, source: jax.Array) -> Factors:
    """Add component `source` to component `into`, cut to rank m, and leave `source` at zero."""
    # `P_a + P_b` has the factors of both side by side, of rank up to 2m; the best approximation of
    # rank m keeps its largest singular values.
    both = jnp.stack([into, source])
    reads, writes = (
        leaf[both].reshape(-1, leaf.shape[-1]) for leaf in (factors.reads, factors.writes)
    )
    merged = compress(reads, writes, factors.reads.shape[1])
    return Factors(
        factors.reads.at[into].set(merged.reads).at[source].set(0),
        factors.writes.at[into].set(merged.writes).at[source].set(0),
    )


def partition(
    second: jax.Array, ridge: float = RIDGE
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Partition factors among groups of examples, by what a site reads on them.

    For weights `w` [R] of a group, `Π = (Σ_b t_b x_bᵀx_b + ε)⁻¹ Σ_b w_b x_bᵀx_b` is the linear map
    that best reproduces `x` on the group's examples and gives 0 on those of the other groups: the
    solution of a weighted ridge regression. The maps of groups whose weights sum to `t` sum to the
    identity on everything that the examples read, so that components partitioned by them still add
    up to what was partitioned. Directions that no example reads are left out by all maps.

    Args:
      second: `Σ_b t_b x_bᵀx_b` [d_in, d_in], with t the sum of the weights of all groups; of a
        look-up, whose rows are one-hot, the diagonal [d_in].
      ridge: ε in units of the mean eigenvalue of the second moments; it keeps directions that
        examples barely read from being amplified.

    Returns:
      The function `(Σ_b w_b x_bᵀx_b, reads [..., d_in]) -> reads Πᵀ`.
    """
    width = second.shape[0]
    if second.ndim == 1:
        entries = second + ridge * jnp.mean(second) + 1e-30
        return lambda moment, reads: reads * (moment / entries)
    epsilon = ridge * jnp.trace(second) / width + 1e-30
    # One factorisation of the moments of all groups serves every group: only the right-hand side is
    # a group's own.
    lower = linalg.cholesky(second + epsilon * jnp.eye(width))

    def part(moment: jax.Array, reads: jax.Array) -> jax.Array:
        # The fewer of `reads` and of the identity's rows meet the inverse.
        flat = reads.reshape(-1, width)
        if len(flat) > width:
            return (flat @ linalg.solve_factored(lower, moment).T).reshape(reads.shape)
        return linalg.solve_factored(lower, moment @ flat.T).T.reshape(reads.shape)

    return part


def gram(components: Components) -> jax.Array:
    """`Σ_l <P_{c,l}, P_{d,l}>`, [C, C], forming one component's matrices at a time."""
    num_components = next(iter(components.values())).reads.shape[0]

    def row(c):
        total = jnp.zeros(num_components)
        for f in components.values():
            matrix = jnp.einsum("...mi,...mo->...io", f.reads[c], f.writes[c])
            products = jnp.einsum("d...mi,...io,d...mo->d...", f.reads, matrix, f.writes)
            total += products.reshape(num_components, -1).sum(axis=1)
        return total

    return jax.lax.map(row, jnp.arange(num_components))


def select(do: jax.Array, new, old):
    """`new` where `do`, else `old`, for pytrees of the same structure."""
    return jax.tree.map(lambda a, b: jnp.where(do, a, b), new, old)
