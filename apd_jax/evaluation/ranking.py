"""The examples that a component is most important for.

Letters: R rows (examples, or positions of them), C components.
"""

from typing import NamedTuple

import numpy as np

from apd_jax.evaluation.seen import Seen


class TopExamples(NamedTuple):
    """The examples that a component is most important for.

    Attributes:
      examples: [n] numbers of the examples, largest share first.
      positions: [n] numbers of the positions, [n, axes] where they have several, or None where
        components are chosen for examples.
      scores: [n] attributions.
      active: [n] bool, whether the component is active there.
      shares: [n] share of the example's (or position's) squared attributions, see `shares`.
    """

    examples: np.ndarray
    positions: np.ndarray | None
    scores: np.ndarray
    active: np.ndarray
    shares: np.ndarray


def shares(scores: np.ndarray) -> np.ndarray:
    """Share of each row's attribution that a component has, `A_c² / (Σ_c A_c² + t)`.

    Attributions grow with the gradients of a row, so that by attribution a few rows of large
    gradients would head every component. t is the median of `Σ_c A_c²` over the rows where it is
    not zero: without it, rows on which next to nothing is active would be the first.

    Args:
      scores: [R, C] attributions; those that are not finite count as 0.

    Returns:
      [R, C] shares in [0, 1).
    """
    squares = np.square(np.where(np.isfinite(scores), scores, 0.0))
    total = squares.sum(axis=1, keepdims=True)
    typical = np.median(total[total > 0]) if np.any(total > 0) else 1.0
    return squares / (total + typical)


def rows(share: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the `count` rows of the largest shares [R], in descending order."""
    return np.argsort(-share, kind="stable")[:count]


def examples(found: Seen, component: int, count: int) -> TopExamples:
    """`Decomposition.top_examples` of what was seen already."""
    scores = found.scores[:, component]
    share = shares(found.scores)[:, component]
    best = rows(share, count)
    places = found.places(best)
    numbers, *others = places
    positions = np.stack(others, axis=1) if len(others) > 1 else next(iter(others), None)
    return TopExamples(numbers, positions, scores[best], found.mask[best, component], share[best])
