"""Comparison of a converted network with torch's own: the largest relative difference of outputs.

Letters: B batch, T positions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.errors import UserError
from apd_jax.sites.rows import batch_size

PyTree = Any
TOLERANCE = 1e-4
_WAY_OUT = (
    "Where such a row is padding, valid= (a function of the batch that gives bool [B] or [B, T]) "
    "leaves it out"
)


def conversion_error(ours: Callable, theirs: Callable, x: PyTree, valid: Callable | None) -> float:
    """The largest difference between two networks, in parts of the largest output.

    Both are run on the whole batch, and on a batch of another size: a part of it, or, of one or two
    examples, three that repeat them.

    Args:
      ours: x -> outputs, the converted network.
      theirs: rows -> outputs of torch's own on these rows of the batch.
      x: [B, ...] inputs.
      valid: x -> bool [B] or [B, T], what counts; everything if None.

    Raises:
      UserError: it is above `TOLERANCE`, or an output that counts is NaN.
    """
    size = batch_size(x)
    other_size = np.arange(size // 2 + 1) if size > 2 else np.arange(3) % size
    found = []
    for rows in (np.arange(size), other_size):
        batch = jax.tree.map(lambda leaf, rows=rows: leaf[rows], x)
        count = None if valid is None else _counting(valid(batch), len(rows))
        b, a = theirs(rows), ours(batch)  # what torch itself refuses is said first
        trees: list[Any] = [jax.tree.structure(a), jax.tree.structure(b)]
        if trees[0] != trees[1]:
            raise UserError(f"the converted network gives {trees[0]}, and torch {trees[1]}")
        for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            found.append(_difference(np.asarray(one), np.asarray(other), count))
    return max(found, default=0.0)


def _counting(valid: Any, size: int) -> np.ndarray:
    count = np.asarray(valid).astype(bool)
    if count.ndim not in (1, 2) or len(count) != size or not count.any():
        raise UserError(
            f"valid must give bool [B] or [B, T] of a batch of {size} with something that counts, "
            f"got {np.asarray(valid).dtype}{list(count.shape)} with {count.sum()} that count"
        )
    return count


def _difference(ours: np.ndarray, theirs: np.ndarray, count: np.ndarray | None) -> float:
    if ours.shape != theirs.shape:
        raise UserError(
            f"the converted network gives an output {list(ours.shape)}, and torch "
            f"{list(theirs.shape)}"
        )
    keep = rows_that_count(count, theirs.shape)
    kind = np.complex128 if np.iscomplexobj(theirs) else np.float64
    a, b = ours.astype(kind), theirs.astype(kind)
    for array, whose in ((b, "torch's own output"), (a, "the converted network's output")):
        if (np.isnan(array) & keep).any():
            raise UserError(
                f"{whose} is NaN at {_place(np.isnan(array) & keep)}, as of a query all keys of "
                "which are masked by −inf: mask by torch.finfo(dtype).min instead. " + _WAY_OUT
            )
    same = (a == b) | ~keep  # infinities, too
    apart = np.where(same, 0.0, np.abs(np.where(same, 0, a) - np.where(same, 0, b)))
    scale = np.abs(b[keep & np.isfinite(b)]).max(initial=0.0)
    error = float(apart.max(initial=0.0) / scale) if scale else float(apart.max(initial=0.0))
    if not error <= TOLERANCE:
        raise UserError(
            f"the converted network differs from torch's own by {error:.2g} of the largest output "
            f"(allowed: {TOLERANCE:.0e}) on a batch of {len(a)}, most at "
            f"{_place(apart == apart.max())}: the module draws random numbers, changes its "
            "buffers at each call, changes a tensor in place through a view of it, which torchax "
            "loses (write y = y * 2 for y.t().mul_(2)), or has an operator that computes something "
            "else in JAX. " + _WAY_OUT
        )
    return error


def rows_that_count(count: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """Which numbers of an output count, bool of its shape.

    Args:
      count: bool [B] or [B, T]; an output without positions counts where any of its own do.
      shape: shape of the output, [B, ...].

    Raises:
      UserError: an output has no batch axis in front, as a loss.
    """
    if count is None:
        return np.ones(shape, bool)
    if shape[:1] != count.shape[:1]:
        raise UserError(
            f"with valid=, every output needs the batch axis in front, [{len(count)}, ...], which "
            f"a loss lacks; got an output {list(shape)}: select the outputs with output=, a key or "
            'attribute ("logits"), an index or a function'
        )
    if count.ndim == 2 and shape[:2] != count.shape:
        count = np.any(count, axis=1, keepdims=False)
    return np.broadcast_to(count.reshape(*count.shape, *(1,) * (len(shape) - count.ndim)), shape)


def _place(where: np.ndarray) -> str:
    """The first place of an output, in words."""
    index = np.argwhere(where)[0]
    words = [f"example {index[0]}"] if len(index) else ["the number"]
    if len(index) > 2:
        words.append(f"position {index[1]}")
    return ", ".join(words)


def check_gradient(apply_fn: Callable, params: PyTree, x: PyTree, valid: Callable) -> None:
    """Refuse NaN in the gradient of the outputs that count, as padding may leave there.

    Raises:
      UserError: it is NaN with respect to a parameter, which is named.
    """
    count = _counting(valid(x), batch_size(x))

    def total(params):
        leaves = jax.tree.leaves(apply_fn(params, x))
        real = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
        kept = [jnp.where(rows_that_count(count, leaf.shape), leaf, 0) for leaf in real]
        return sum((jnp.sum(jnp.where(jnp.isfinite(leaf), leaf, 0) ** 2) for leaf in kept), 0.0)

    gradients = jax.jit(jax.grad(total, allow_int=True))(params)
    for name, gradient in gradients.items():
        floating = jnp.issubdtype(gradient.dtype, jnp.floating)
        if floating and not np.isfinite(np.asarray(gradient)).all():
            raise UserError(
                f"the derivative by {name} of the outputs that count is not finite, though they "
                "are: rows that don't count are NaN within the network, as of queries all keys of "
                "which are masked by −inf. Mask by torch.finfo(dtype).min instead"
            )
