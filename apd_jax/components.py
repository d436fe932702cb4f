"""Parameter components: stacked low-rank factors of every decomposed matrix.

Component c spans all sites; at site l it is `P_{c,l} = U_{c,l} V_{c,l}`, at a stacked site one such
product for every block. Letters: C components, G blocks of a stacked site, m rank, d_in / d_out
site widths.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from apd_jax.config_fields.values import whole
from apd_jax.errors import UserError
from apd_jax.programs import linalg
from apd_jax.programs.axes import spread
from apd_jax.programs.jax_settings import check_key
from apd_jax.programs.sum_of_terms import sum_terms
from apd_jax.sites import Placement, PyTree, Target, check_inputs, check_is_target
from apd_jax.sites.given_arrays import as_arrays, matrices_of


class Factors(NamedTuple):
    """The factors of all components at one site, as C·m rank-one terms `reads ⊗ writes`.

    Both factors keep the rank in front of the width. A transposed use of the site then only swaps
    them, and sums over components are one flat matrix product without moving memory.

    Attributes:
      reads: [C, (G,) m, d_in]; row r is the input direction that term r reads, so this is `Uᵀ`.
      writes: [C, (G,) m, d_out]; row r is the output direction that term r writes; this is `V`.
    """

    reads: jax.Array
    writes: jax.Array

    @classmethod
    def from_uv(cls, U: jax.Array, V: jax.Array) -> "Factors":
        """Stack factors `U` [C, (G,) d_in, m] and `V` [C, (G,) m, d_out]."""
        return cls(jnp.swapaxes(matrices_of("U", U), -1, -2), matrices_of("V", V))

    @classmethod
    def from_matrices(cls, matrices: jax.Array, rank: int | None = None) -> "Factors":
        """Factor matrices by their largest singular values.

        Args:
          matrices: [C, (G,) d_in, d_out].
          rank: m; full rank if None. A rank above the matrices' own is filled up with zeros.
        """
        u, s, vt = linalg.svd(matrices_of("matrices", matrices))
        return cls.from_svd(u, s, vt, rank)

    @classmethod
    def from_svd(
        cls, u: jax.Array, s: jax.Array, vt: jax.Array, rank: int | None = None
    ) -> "Factors":
        """Factors [..., m, d] of `u s vt`, with the root of each singular value on either side.

        The even split keeps both factors at the same scale, which Adam's steps, equal for all
        entries, depend on.

        Args:
          u: [..., d_in, q] left singular vectors.
          s: [..., q] singular values in descending order.
          vt: [..., q, d_out] right singular vectors.
          rank: m; q if None. Values beyond it are dropped, and missing ones filled up with zeros.
        """
        rank = s.shape[-1] if rank is None else rank
        kept = min(rank, s.shape[-1])
        root = jnp.sqrt(s[..., :kept, None])
        pad = [(0, 0)] * (s.ndim - 1) + [(0, rank - kept), (0, 0)]
        reads = root * jnp.swapaxes(u[..., :kept], -1, -2)
        return cls(jnp.pad(reads, pad), jnp.pad(root * vt[..., :kept, :], pad))

    @property
    def U(self) -> jax.Array:
        """Left factor, [C, (G,) d_in, m]."""
        return jnp.swapaxes(self.reads, -1, -2)

    @property
    def V(self) -> jax.Array:
        """Right factor, [C, (G,) m, d_out]."""
        return self.writes

    def transpose(self) -> "Factors":
        """The factors of `P_cᵀ`, for a transposed use of the site."""
        return Factors(self.writes, self.reads)

    @property
    def num_components(self) -> int:
        """C."""
        return self.reads.shape[0]

    @property
    def stacked(self) -> bool:
        """Whether the site is a stack of blocks."""
        return self.reads.ndim == 4

    def placed(self, placement: Placement) -> "Factors":
        """The factors of the matrix that one use of the site multiplies by.

        A use may transpose the site's matrix, or take some of its blocks, rows or columns.
        """
        factors = self.transpose() if placement.transposed else self
        reads, writes = factors
        if placement.blocks is not None:
            reads, writes = (f[:, jnp.array(placement.blocks)] for f in (reads, writes))
        if placement.rows is not None:
            reads = reads[..., jnp.array(placement.rows)]
        if placement.columns is not None:
            writes = writes[..., jnp.array(placement.columns)]
        return Factors(reads, writes)

    def matrices(self) -> jax.Array:
        """Every component's matrix `U_c V_c`, [C, (G,) d_in, d_out]; only for small sites."""
        return jnp.einsum("c...mi,c...mo->c...io", self.reads, self.writes)

    def scaled(self, amounts: jax.Array) -> "Factors":
        """The factors of `a_c P_c` for numbers a [C]."""
        return self._replace(writes=self.writes * spread(amounts, self.writes.ndim))

    def squared_norms(self) -> jax.Array:
        """`‖P_c‖²`, [C], at a stacked site that of all blocks together.

        `‖Σ_m u_m v_mᵀ‖² = Σ_{m,n} (u_m·u_n)(v_m·v_n)`: terms need not be orthogonal, and no matrix
        is formed.
        """
        of_reads = jnp.einsum("c...mi,c...ni->c...mn", self.reads, self.reads)
        of_writes = jnp.einsum("c...mo,c...no->c...mn", self.writes, self.writes)
        return jnp.sum(of_reads * of_writes, axis=tuple(range(1, of_reads.ndim)))

    def sum(self) -> jax.Array:
        """`Σ_c U_c V_c`, [(G,) d_in, d_out], as one product over all C·m terms."""
        if self.stacked:
            return jax.vmap(lambda *factors: Factors(*factors).sum(), in_axes=1)(*self)
        return sum_terms(
            self.reads.reshape(-1, self.reads.shape[-1]),
            self.writes.reshape(-1, self.writes.shape[-1]),
        )


# `{site: Factors}`.
Components = dict[str, Factors]


def init_components(
    key: jax.Array,
    target: Target,
    *,
    num_components: int,
    rank: int | None = None,
    scale: float | jax.Array = 1.0,
    instances: int = 1,
) -> Components:
    """Draw components from the published initialisation.

    Xavier normal with the fan counts of a stacked tensor: `U` has standard deviation
    `scale · sqrt(2 / ((C + instances) · d_in · m))`, and `V` the same with d_out. The paper's code
    trains `instances` runs in one tensor, whose shape determines its fan counts.

    Args:
      key: PRNG key for the factors.
      target: the network.
      num_components: C.
      rank: m, the same at every site; `min(d_in, d_out)` of each site if None.
      scale: gain of the initialisation.
      instances: number of runs in the stacked tensor whose statistics the factors get.

    Returns:
      `{site: Factors}`, float32.

    Raises:
      UserError: no target, no key, sizes not whole or below 1, a scale that is not positive.
    """
    check_is_target(target)
    num_components = whole("num_components", num_components)
    instances = whole("instances", instances)
    rank = None if rank is None else whole("rank", rank)
    if not isinstance(scale, jax.core.Tracer) and not scale > 0:
        raise UserError(f"scale must be positive, got {scale}")
    check_key(key)
    components = {}
    for index, (site, weight) in enumerate(target.weights.items()):
        *blocks, d_in, d_out = weight.shape
        m = min(d_in, d_out) if rank is None else rank
        key_u, key_v = jax.random.split(jax.random.fold_in(key, index))

        def draw(draw_key, width, m=m, blocks=blocks):
            deviation = scale * math.sqrt(2 / ((num_components + instances) * width * m))
            return deviation * jax.random.normal(draw_key, (num_components, *blocks, m, width))

        components[site] = Factors(draw(key_u, d_in), draw(key_v, d_out))
    return components


def num_components(components: Components) -> int:
    """C."""
    return next(iter(components.values())).num_components


def squared_norms(components: Components) -> jax.Array:
    """`Σ_l ‖P_{c,l}‖²` over all sites, [C]."""
    first, *others = (factors.squared_norms() for factors in components.values())
    return sum(others, first)


def check_components(target: Target, components: Components) -> None:
    """Raise UserError unless components have the target's sites, widths, and one C."""
    if not isinstance(components, Mapping):
        raise UserError(
            "components must be a mapping {site: Factors}, such as those of init_components or "
            f"decomposition.components, got a {type(components).__name__}"
        )
    if set(components) != set(target.sites):
        raise UserError(
            f"components are for sites {sorted(components, key=str)}, the target's are "
            f"{sorted(target.sites)}"
        )
    counts = set()
    for name, site in target.sites.items():
        reads, writes = _factors(name, components[name])
        *blocks, d_in, d_out = site.shape
        fits = reads.ndim == writes.ndim == len(site.shape) + 1
        fits = fits and reads.shape[:-1] == writes.shape[:-1] and reads.shape[1:-2] == tuple(blocks)
        if not fits or (reads.shape[-1], writes.shape[-1]) != (d_in, d_out):
            raise UserError(
                f"site {name!r} has a matrix {site.shape}, its factors are U "
                f"{components[name].U.shape} and V {components[name].V.shape}; expected "
                "[C, (G,) d_in, m] and [C, (G,) m, d_out]"
            )
        counts.add(reads.shape[0])
    if len(counts) > 1:
        raise UserError(f"sites differ in their number of components: {sorted(counts)}")


def _factors(name: str, given: Any) -> Factors:
    """The factors of a site; raises UserError for what are none, or factors of no matrices."""
    if not isinstance(given, Factors):
        raise UserError(
            f"components[{name!r}] must be Factors, got a {type(given).__name__}: "
            "Factors.from_uv(U, V), or Factors.from_matrices(P) of P [C, (G,) d_in, d_out]"
        )
    if not all(len(getattr(leaf, "shape", ())) > 1 for leaf in given):
        raise UserError(
            f"components[{name!r}] must be Factors of arrays [C, (G,) m, d], got {given!r:.200}"
        )
    return given


def check_given(target: Target, components: Components, x: PyTree) -> PyTree:
    """The inputs [B, ...] as arrays; raises UserError unless all three fit each other."""
    x = as_arrays(x)
    check_inputs(target, x)
    check_components(target.at(x), components)
    return x


def in_parameter_space(target: Target, components: Components) -> PyTree:
    """Write components as vectors in parameter space.

    Args:
      target: the network.
      components: `{site: Factors}` with C components.

    Returns:
      A pytree like `target.params` with leaves [C, ...]: `P_c` where a leaf is a site, and zeros
      elsewhere. The attribution of component c is the derivative of the network along its vector
      (section 2.2 of the paper).

    Raises:
      UserError: components that do not fit the target's sites.
    """
    check_components(target, components)
    nothing = Target.tree_unflatten(
        target.tree_flatten()[1], (jax.tree.map(jnp.zeros_like, target.params),)
    )
    stacks = {name: factors.matrices() for name, factors in components.items()}
    return jax.vmap(lambda matrices: nothing.with_weights(matrices).params)(stacks)
