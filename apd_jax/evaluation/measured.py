"""Error and quality of outputs, added up block by block.

Letters: N examples, B examples of a block, T positions, R rows (examples, or positions of them).
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from apd_jax import validity
from apd_jax.evaluation.labels import are_classes, check_labels, cross_entropy_parts, quality_parts
from apd_jax.objective.distances import distance_parts, of_each_row
from apd_jax.objective.objective import Objective
from apd_jax.programs.compiled import jit_with_network
from apd_jax.sites import PyTree, Target


class Measured(NamedTuple):
    """How far outputs are from the target's, and how well they fit labels.

    Attributes:
      error: mean distance, as the training minimises it.
      quality: accuracy, or mean squared error; None without labels.
      cross_entropy: mean over the labels in nats; None without labels, or where these are values.
    """

    error: float
    quality: float | None = None
    cross_entropy: float | None = None


@jit_with_network(static=1)
def _distance(objective: Objective, _, outputs: PyTree, target_outputs: PyTree, x: PyTree):
    valid = objective.counted(x)
    return distance_parts(objective.minimality_loss, outputs, target_outputs, valid)


@jit_with_network(static=2)
def row_errors(
    objective: Objective,
    axes: int,
    _: Target,
    outputs: PyTree,
    target_outputs: PyTree,
    x: PyTree,
) -> jax.Array:
    """The distance on every row of a block, as on a batch of this row alone, float32 [R].

    Args:
      objective: its minimality loss is the distance.
      axes: number of axes of positions that are rows of their own; 0 where examples are the rows.
      outputs, target_outputs: [B, ...].
      x: [B, ...] inputs. Of an example those positions are taken that count; whether a row itself
        counts is not looked at.

    Raises:
      TypeError, ValueError: a loss of the caller's that a single row does not fit.
    """
    valid = objective.counted(x)
    return of_each_row(objective.minimality_loss, axes, outputs, target_outputs, valid)


class MeasuredSums:
    """Sums over blocks of what `Measured` holds."""

    def __init__(self, objective: Objective, target: Target, num_examples: int, labels: Any = None):
        """Nothing is added up yet.

        Args:
          objective: its minimality loss is the distance, and its `valid` says what counts.
          target: the network.
          num_examples: N.
          labels: classes or values of all N examples; None for no labels.
        """
        self._objective, self._target, self._num_examples = objective, target, num_examples
        self._labels = None if labels is None else np.asarray(labels)
        self._error, self._quality, self._cross_entropy = (np.zeros(2) for _ in range(3))

    def add(self, place: slice, x: PyTree, outputs: PyTree, target_outputs: PyTree) -> None:
        """Add a block.

        Args:
          place: of the block among the examples.
          x: [B, ...] its inputs.
          outputs, target_outputs: [B, ...].

        Raises:
          UserError: labels that don't fit the outputs.
        """
        found = _distance(self._objective, self._target, outputs, target_outputs, x)
        self._error += np.asarray(found, np.float64)
        if self._labels is None:
            return
        (values, *more) = (np.asarray(leaf) for leaf in jax.tree.leaves(outputs))
        check_labels(self._labels, (self._num_examples, *values.shape[1:]), len(more) + 1)
        labels, valid = self._labels[place], self._objective.counted(x)
        counted = None
        if valid is not None:
            counted = np.asarray(validity.of_rows(valid, labels.shape[: max(valid.ndim, 1)]))
        self._quality += quality_parts(values, labels, counted)
        self._cross_entropy += cross_entropy_parts(values, labels, counted)

    def result(self) -> Measured:
        """The means over everything that was added."""
        error = self._error[0] / max(self._error[1], 1)
        if self._labels is None:
            return Measured(float(error))
        quality = float(self._quality[0] / max(self._quality[1], 1))
        if not are_classes(self._labels):
            return Measured(float(error), quality)
        loss, count = self._cross_entropy
        return Measured(float(error), quality, float(loss / max(count, 1)))
