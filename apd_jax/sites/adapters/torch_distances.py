"""torch's operators whose derivatives are NaN in torchax at points where torch's are finite.

Letters: P and R points, d width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch

from apd_jax.sites.adapters import torchax_import

_FEW = 25  # points, of which torch computes the distances one by one


def operators() -> dict[Any, Callable]:
    """Functions of JAX arrays by the operators that they stand for."""
    aten = torch.ops.aten
    return {
        aten.linalg_vector_norm: norm,
        aten.std.correction: deviation,
        aten.std_mean.correction: lambda x, dim=None, **options: (
            deviation(x, dim, **options),
            jnp.mean(x, axis=_axes(dim), keepdims=options.get("keepdim", False)),
        ),
        torch.cdist: distances,
        aten.softplus: softplus,
        aten.atan2: angle,
        aten.sinc: jnp.sinc,
    }


def _axes(dim: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    if dim is None or isinstance(dim, int):
        return dim
    return tuple(dim) or None


def _root(x: jax.Array) -> jax.Array:
    """`√x`; at 0 its derivative is 0, as that of torch's norms, distances and deviations."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


def norm(
    x: jax.Array, ord: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> jax.Array:
    """The norm over axes; where all entries are 0 its derivative is 0."""
    zero = jnp.all(x == 0, axis=_axes(dim), keepdims=True)
    own = torchax_import.load().ops.jaten._aten_linalg_vector_norm
    found = own(jnp.where(zero, 1, x), ord, dim, keepdim, dtype)
    return jnp.where(zero.reshape(found.shape), 0, found)


def deviation(
    x: jax.Array, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> jax.Array:
    """The standard deviation over axes."""
    freedom: Any = 1 if correction is None else correction
    return _root(jnp.var(x, axis=_axes(dim), ddof=freedom, keepdims=keepdim))


def distances(
    x: jax.Array,
    y: jax.Array,
    p: float = 2.0,
    compute_mode: str = "use_mm_for_euclid_dist_if_necessary",
) -> jax.Array:
    """Distances [..., P, R] of points x [..., P, d] and y [..., R, d]."""
    many = max(x.shape[-2], y.shape[-2]) > _FEW and compute_mode.endswith("if_necessary")
    if p != 2 or not (many or compute_mode == "use_mm_for_euclid_dist"):
        return norm(x[..., :, None, :] - y[..., None, :, :], p, -1)
    squares = jnp.sum(x * x, axis=-1)[..., :, None] + jnp.sum(y * y, axis=-1)[..., None, :]
    return _root(jnp.maximum(squares - 2 * x @ jnp.swapaxes(y, -1, -2), 0))


def softplus(x: jax.Array, beta: float = 1.0, threshold: float = 20.0) -> jax.Array:
    """`log(1 + exp(β x)) / β`, and x itself above the threshold."""
    scaled = x * beta
    return jnp.where(
        scaled > threshold, x, jnp.log1p(jnp.exp(jnp.minimum(scaled, threshold))) / beta
    )


def angle(y: jax.Array, x: jax.Array) -> jax.Array:
    """`atan2(y, x)`; where both are 0 its derivative is 0."""
    zero = (x == 0) & (y == 0)
    found = jnp.arctan2(y, jnp.where(zero, 1, x))
    return jnp.where(zero, jax.lax.stop_gradient(jnp.arctan2(y, x)), found)
