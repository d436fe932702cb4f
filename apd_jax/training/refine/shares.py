"""Linear algebra of the moves: sums of factors cut to rank m, and who reads what.

Letters: C components, m rank, d_in / d_out site widths, R rows, G groups of examples.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from apd_jax.components import Factors

RIDGE = 1e-3
# A site, or a block of a stacked one; and components, part by part.
Part = tuple[str, int]
Parts = dict[Part, Factors]


def compress(reads: jax.Array, writes: jax.Array, rank: int) -> Factors:
    """The best factors of rank m for `readsᵀ writes`, without forming the matrix.

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
    kept = min(rank, s.size)
    root = jnp.sqrt(s[:kept])[:, None]
    pad = ((0, rank - kept), (0, 0))
    return Factors(
        jnp.pad(root * (q_in @ u[:, :kept]).T, pad), jnp.pad(root * (vt[:kept] @ q_out.T), pad)
    )


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


def sharing(rows: jax.Array, total: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Part factors among groups of examples, by what a site reads on them.

    For weights `w` [R] of a group, `Π = (Σ_b t_b x_bᵀx_b + ε)⁻¹ Σ_b w_b x_bᵀx_b` is the linear map
    that best gives `x` back on the group's examples and 0 on those of the others. Maps of groups
    whose weights sum to `t` sum to the identity, but for what no example reads.

    Args:
      rows: [R, n, d_in].
      total: [R], t.

    Returns:
      `(w [R], reads [..., d_in]) -> reads Πᵀ`.
    """
    second = jnp.einsum("b,bni,bnj->ij", total, rows, rows)
    width = second.shape[0]
    ridge = RIDGE * jnp.trace(second) / width + 1e-30
    factor = jax.scipy.linalg.cho_factor(second + ridge * jnp.eye(width))

    def part(weights: jax.Array, reads: jax.Array) -> jax.Array:
        flat = reads.reshape(-1, width)
        read = jnp.einsum("b,bni,ri->bnr", weights, rows, flat)
        moment = jnp.einsum("bnj,bnr->jr", rows, read)
        return jax.scipy.linalg.cho_solve(factor, moment).T.reshape(reads.shape)

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
    """`Σ_l <P_{c,l}, P_{d,l}>`, [C, C], a component's matrix at a time."""
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
