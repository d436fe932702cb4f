"""The examples on which a component has the largest attributions."""

from typing import NamedTuple

import numpy as np

from apd_jax.evaluation.seen import Seen


class TopExamples(NamedTuple):
    """The examples on which a component has the largest attributions.

    Attributes:
      examples: [n] numbers of the examples, largest attribution first.
      positions: [n] numbers of the positions, [n, axes] where they have several, or None where
        components are chosen for examples.
      scores: [n] attributions.
      active: [n] bool, whether the component is active there.
    """

    examples: np.ndarray
    positions: np.ndarray | None
    scores: np.ndarray
    active: np.ndarray


def top_examples(found: Seen, component: int, count: int) -> TopExamples:
    """Choose the examples (or positions) with the largest attributions of a component.

    Args:
      found: attributions and masks of N examples.
      component: number of the component.
      count: largest number of examples.
    """
    scores = found.scores[:, component]
    rows = np.argsort(-scores, kind="stable")[:count]
    examples, *others = np.unravel_index(rows, found.lead)
    positions = np.stack(others, axis=1) if len(others) > 1 else next(iter(others), None)
    return TopExamples(examples, positions, scores[rows], found.mask[rows, component])
