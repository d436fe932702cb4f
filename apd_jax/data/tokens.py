"""Which of a network's inputs holds tokens."""

from typing import Any

import jax
import numpy as np

_COMPARED = 32  # examples, to tell tokens from other whole numbers


def tokens_of(x: Any) -> np.ndarray | None:
    """Of the arrays of whole numbers [N, T] the one that differs most from example to example.

    Masks of padding, segments and numbers of positions are whole numbers too.

    Args:
      x: inputs, a pytree of arrays.

    Returns:
      The tokens [N, T]; None where no array can hold them.
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(x)]
    found = [leaf for leaf in leaves if leaf.ndim == 2 and leaf.dtype.kind in "iu"]
    return max(found, key=_variety, default=None)


def _variety(array: np.ndarray) -> tuple[int, int]:
    """How many values the first examples have at each position, added up; and how many in all."""
    some = array[:_COMPARED]
    return int(np.count_nonzero(np.diff(np.sort(some, axis=0), axis=0))), len(np.unique(some))
