"""Comparison of a converted network with torch's own: the largest relative difference of outputs.

Letters: B batch, T positions.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.errors import UserError
from apd_jax.sites.adapters import torchax_import
from apd_jax.sites.closeness import close
from apd_jax.sites.counted import check, of_batch, of_entries, spread
from apd_jax.sites.rows import batch_size

PyTree = Any
TOLERANCE = 1e-4
_APART = 1e-3  # difference of an example's outputs in two batches
_WAY_OUT = (
    "Where such a row is padding, valid= (a function of the batch that gives bool [B] or [B, T]) "
    "leaves it out"
)


def counted(valid: Callable | None, x: PyTree) -> np.ndarray | None:
    """What counts of a batch, bool [B] or [B, T], of one or several axes T; None for everything.

    Args:
      valid: function of the batch; numbers that are not 0 count.
      x: [B, ...] inputs.

    Raises:
      UserError: it is no such function, or nothing counts.
    """
    if valid is None:
        return None
    check(valid)

    def is_not_0(batch):
        found = jnp.asarray(valid(batch))
        return found != 0 if jnp.issubdtype(found.dtype, jnp.floating) else found

    count = np.asarray(of_batch(is_not_0, x))
    if not count.any():
        raise UserError(f"valid leaves nothing that counts of inputs of {len(count)} examples")
    return count


def conversion_error(
    ours: Callable, theirs: Callable, x: PyTree, count: np.ndarray | None
) -> float:
    """The largest difference between two networks, in parts of the largest output.

    Both are run on the whole batch, and on a batch of another size: a part of it, or, of one or two
    examples, three that repeat them.

    Args:
      ours: x -> outputs, the converted network.
      theirs: rows -> outputs of torch's own on these rows of the batch.
      x: [B, ...] inputs.
      count: what counts; see `counted`.

    Raises:
      UserError: it is above `TOLERANCE`, or an output that counts is NaN.
    """
    size = batch_size(x)
    order = np.arange(size)
    if count is not None:  # examples that count come first
        order = np.argsort(~count.reshape(size, -1).any(axis=1), kind="stable")
    other = order[: size // 2 + 1] if size > 2 else np.arange(3) % size
    found = []
    for rows in (np.arange(size), other):
        batch = jax.tree.map(lambda leaf, rows=rows: leaf[rows], x)
        b, a = theirs(rows), ours(batch)  # what torch itself refuses is said first
        trees: list[Any] = [jax.tree.structure(a), jax.tree.structure(b)]
        if trees[0] != trees[1]:
            raise UserError(f"the converted network gives {trees[0]}, and torch {trees[1]}")
        pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
        for one, other_one in pairs:
            if one.shape != other_one.shape:
                raise UserError(
                    f"the converted network gives an output {list(one.shape)}, and torch "
                    f"{list(other_one.shape)}"
                )
        some = None if count is None else count[rows]
        keeps = entries_that_count(some, [one.shape for one, _ in pairs])
        try:
            for (one, other_one), keep in zip(pairs, keeps, strict=True):
                found.append(_difference(np.asarray(one), np.asarray(other_one), keep))
        except UserError:
            _check_repeatable(jax.tree.leaves(b), functools.partial(theirs, rows), keeps)
            raise
    return max(found, default=0.0)


def _check_repeatable(
    found: list[np.ndarray], again: Callable[[], PyTree], keeps: list[np.ndarray]
) -> None:
    """Refuse a module whose outputs differ between two runs, or without torch's fast path.

    Args:
      found: its outputs.
      again: runs it again.
      keeps: which entries count.
    """

    def differ(others: PyTree) -> bool:
        triples = zip(found, jax.tree.leaves(others), keeps, strict=True)
        return not all(
            np.allclose(np.where(keep, a, 0), np.where(keep, b, 0), _APART, equal_nan=True)
            for a, b, keep in triples
        )

    if differ(again()):
        raise UserError(
            "torch's own outputs differ between two runs on the same inputs: the module draws "
            "random numbers in eval mode (draw only if self.training, or make the numbers an "
            "input of forward) or changes its buffers at each call"
        )
    with torchax_import.without_fast_path():
        slow = again()
    if differ(slow):
        raise UserError(
            "torch's own outputs depend on its fast path for attention, which runs in eval mode "
            "without gradients: it reads a mask of floats as boolean, so that every entry that is "
            "not 0 is masked, and returns 0 at padded positions. Give boolean masks; leave padding "
            "out with valid=, a function of the batch that gives bool [B] or [B, T]; or call "
            "torch.backends.mha.set_fastpath_enabled(False) first, to compare with the outputs "
            "that torch gives when gradients are recorded"
        )


def _difference(ours: np.ndarray, theirs: np.ndarray, keep: np.ndarray) -> float:
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
            f"{_place(apart == apart.max())}: the module draws random numbers from a seed of its "
            "own, changes a tensor in place through a view of it, which torchax loses (write "
            "y = y * 2 for y.t().mul_(2)), computes in half precision (leave out torch.autocast), "
            "or has an operator that computes something else in JAX. " + _WAY_OUT
        )
    return error


def check_apart(ours: Callable, x: PyTree, sequence_first: Sequence[str]) -> None:
    """Refuse a network whose examples depend on others, where parts take the batch second.

    Args:
      ours: x -> outputs.
      x: [B, ...] inputs; nothing is checked for fewer than 3 examples.
      sequence_first: names of such parts.

    Raises:
      UserError: an example's output depends on the others, or on its place; it names a part.
    """
    size = batch_size(x)
    if size < 3 or not sequence_first:
        return

    def at(place: int, rows: list[int]) -> list[np.ndarray]:
        outputs = ours(jax.tree.map(lambda leaf: leaf[np.array(rows)], x))
        found = [leaf for leaf in jax.tree.leaves(outputs) if leaf.shape[:1] == (size,)]
        return [np.asarray(leaf[place]) for leaf in found]

    # Beside others, in another place; as many as all, so that nothing is compiled again.
    first, other = at(0, [0, *[1] * (size - 1)]), at(1, [2, 0, *[2] * (size - 2)])
    if not all(close(a, b, _APART) for a, b in zip(first, other, strict=True)):
        raise UserError(
            f"{sequence_first[0]} has batch_first=False, torch's default, so that it takes inputs "
            "[T, B, ...], and the output of an example depends on the other examples of its batch: "
            "make it with batch_first=True, or exchange the two axes in forward"
        )


def entries_that_count(
    count: np.ndarray | None, shapes: Sequence[tuple[int, ...]]
) -> list[np.ndarray]:
    """Which numbers of every output count, bool of its shape.

    Args:
      count: what counts; see `counted`. Of an output without these positions, beside one that has
        them or with no more axes, all numbers count where any position of the example does.
      shapes: shapes of the outputs, [B, ...].

    Raises:
      UserError: an output has no batch axis in front, as a loss, or no output has the positions.
    """
    if count is None:
        return [np.ones(shape, bool) for shape in shapes]
    for shape in shapes:
        if shape[:1] != count.shape[:1]:
            raise UserError(
                f"with valid=, every output needs the batch axis in front, [{len(count)}, ...], "
                f"which a loss lacks; got an output {list(shape)}: select the outputs with "
                'output=, a key or attribute ("logits"), an index or a function'
            )
    placed = [shape[: count.ndim] == count.shape for shape in shapes]
    keeps: list[np.ndarray] = []
    for shape, has_positions in zip(shapes, placed, strict=True):
        keep: np.ndarray = count
        if not has_positions:
            if not any(placed):  # says so of an output with other positions
                of_entries(jnp.asarray(count), jnp.zeros(shape, bool))
            keep = np.any(count.reshape(len(count), -1), axis=1)
        keeps.append(np.broadcast_to(spread(keep, len(shape)), shape))
    return keeps


def _place(where: np.ndarray) -> str:
    """The first place of an output, in words."""
    index = np.argwhere(where)[0]
    words = [f"example {index[0]}"] if len(index) else ["the number"]
    if len(index) > 2:
        words.append(f"position {index[1]}")
    return ", ".join(words)


def check_gradient(apply_fn: Callable, params: PyTree, x: PyTree, count: np.ndarray) -> None:
    """Refuse NaN in the gradient of the outputs that count, as padding may leave there.

    Raises:
      UserError: it is NaN with respect to a parameter, which is named.
    """

    def total(params):
        leaves = jax.tree.leaves(apply_fn(params, x))
        keeps = entries_that_count(count, [leaf.shape for leaf in leaves])
        kept = [
            jnp.where(keep, leaf, 0)
            for leaf, keep in zip(leaves, keeps, strict=True)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        ]
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
