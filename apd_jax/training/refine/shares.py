"""Linear algebra of the moves: truncation of sums to rank m, and partition of what a site reads.

Letters: C components, m rank, d_in / d_out site widths, R rows of the mask.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from apd_jax.components import Factors

RIDGE = 1e-3
# A part is a site, or one block of a stacked site; moves see the components part by part.
Part = tuple[str, int]
Parts = dict[Part, Factors]


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
    q_in, r_in = jnp.linalg.qr(reads.T)
    q_out, r_out = jnp.linalg.qr(writes.T)
    u, s, vt = jnp.linalg.svd(r_in @ r_out.T, full_matrices=False)
    return Factors.from_svd(q_in @ u, s, vt @ q_out.T, rank)


def add_into(factors: Factors, into: jax.Array, source: jax.Array) -> Factors:
    """Add component `source` to component `into`, cut to rank m, and leave `source` at zero."""
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
    rows: jax.Array, total: jax.Array, ridge: float = RIDGE
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Partition factors among groups of examples, by what a site reads on them.

    For weights `w` [R] of a group, `Π = (Σ_b t_b x_bᵀx_b + ε)⁻¹ Σ_b w_b x_bᵀx_b` is the linear map
    that best reproduces `x` on the group's examples and gives 0 on those of the other groups: the
    solution of a weighted ridge regression. The maps of groups whose weights sum to `t` sum to the
    identity on everything that the examples read, so that components partitioned by them still add
    up to what was partitioned. Directions that no example reads are left out by all maps.

    Args:
      rows: [R, n, d_in], what the site reads.
      total: [R], the sum t of the weights of all groups.
      ridge: ε in units of the mean eigenvalue of the second moments; it keeps directions that
        examples barely read from being amplified.

    Returns:
      The function `(w [R], reads [..., d_in]) -> reads Πᵀ`.
    """
    second = jnp.einsum("b,bni,bnj->ij", total, rows, rows)
    width = second.shape[0]
    epsilon = ridge * jnp.trace(second) / width + 1e-30
    cholesky = jax.scipy.linalg.cho_factor(second + epsilon * jnp.eye(width))

    def part(weights: jax.Array, reads: jax.Array) -> jax.Array:
        # `reads` meets the rows first: no group's second moments [d_in, d_in] are formed.
        flat = reads.reshape(-1, width)
        read = jnp.einsum("b,bni,ri->bnr", weights, rows, flat)
        moment = jnp.einsum("bnj,bnr->jr", rows, read)
        return jax.scipy.linalg.cho_solve(cholesky, moment).T.reshape(reads.shape)

    return part


def squared_norms(components: Parts) -> jax.Array:
    """`Σ_l ‖P_{c,l}‖²`, [C]."""
    return sum(
        jnp.einsum(
            "cmn,cmn->c",
            jnp.einsum("cmi,cni->cmn", f.reads, f.reads),
            jnp.einsum("cmo,cno->cmn", f.writes, f.writes),
        )
        for f in components.values()
    )


def gram(components: Parts) -> jax.Array:
    """`Σ_l <P_{c,l}, P_{d,l}>`, [C, C], forming one component's matrix at a time."""
    num_components = next(iter(components.values())).reads.shape[0]

    def row(c):
        total = jnp.zeros(num_components)
        for f in components.values():
            matrix = f.reads[c].T @ f.writes[c]
            total += jnp.einsum("dmi,io,dmo->d", f.reads, matrix, f.writes)
        return total

    return jax.lax.map(row, jnp.arange(num_components))


def select(do: jax.Array, new, old):
    """`new` where `do`, else `old`, for pytrees of the same structure."""
    return jax.tree.map(lambda a, b: jnp.where(do, a, b), new, old)
