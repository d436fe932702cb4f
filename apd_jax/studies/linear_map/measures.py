"""How components part a linear map: by rows, where inputs are sparse, and by their rank.

Letters: C components, d width.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np

from apd_jax.components import Components
from apd_jax.decomposition.result import Decomposition
from apd_jax.masked.forward import masked_apply
from apd_jax.objective.objective import Objective
from apd_jax.sites import Target
from apd_jax.studies.linear_map.network import LinearMap
from apd_jax.studies.reconstruction import faithfulness_mse, num_batches, row_mse, stream
from apd_jax.studies.tms.measures import component_order, row_similarity, superposition_scores

SMALL_ERROR = 0.01


class LinearArrays(NamedTuple):
    """What the figures of a linear map and the component browser show.

    Attributes:
      target: [d, d] W, a row an input.
      components: [C, d, d].
      singular_values: [C, d] of the components, in falling order.
      effective_ranks: [C] see `effective_ranks`.
      best_component: [d] int, for each row the component with the largest cosine to it.
      recovered: [d] bool, whether that one has the row's direction and length.
      order: [C] int, the components in the order of the rows they are best for.
    """

    target: np.ndarray
    components: np.ndarray
    singular_values: np.ndarray
    effective_ranks: np.ndarray
    best_component: np.ndarray
    recovered: np.ndarray
    order: np.ndarray

    @property
    def represented(self) -> list[list[int]]:
        """For every component, the rows that it recovers."""
        lists: list[list[int]] = [[] for _ in range(len(self.components))]
        for row, component in enumerate(self.best_component):
            if self.recovered[row]:
                lists[int(component)].append(row)
        return lists


def effective_ranks(singular_values: np.ndarray) -> np.ndarray:
    """`(Σ σ)² / Σ σ²` of every component, [C]: r for r equal singular values; 0 for none.

    Args:
      singular_values: [C, d].
    """
    squares = np.square(singular_values).sum(axis=1)
    sums = np.square(singular_values.sum(axis=1))
    return np.divide(sums, squares, out=np.zeros_like(squares), where=squares > 0)


@jax.default_matmul_precision("highest")
def evaluate_linear_map(
    task: LinearMap, decomposition: Decomposition, *, key: jax.Array, samples: int
) -> tuple[dict[str, float | int | bool], LinearArrays]:
    """Measure a decomposition of a linear map.

    Args:
      task: the map and its inputs.
      decomposition: of one seed.
      key: random key.
      samples: inputs for the error of the top-k output, rounded up to whole batches.

    Returns:
      (numbers, arrays): numbers of results.json, and `LinearArrays`. `solved` where every row of W
      has a component of its own (sparse inputs), or the top-k output has an error of at most 1 % of
      its mean square (Gaussian ones).
    """
    (site,) = decomposition.target.sites
    weight = np.asarray(decomposition.target.weights[site], np.float64)
    pieces = np.asarray(decomposition.components[site].matrices(), np.float64)
    values = np.linalg.svd(pieces, compute_uv=False)
    ranks, energies = effective_ranks(values), np.square(values).sum(axis=1)
    scores, best, recovered = superposition_scores(*row_similarity(weight, pieces))
    errors, squares = _topk_errors(task, decomposition, key, samples)
    relative = errors / squares
    rows = scores["features_recovered"] == len(weight)
    numbers = {
        "faithfulness_mse": faithfulness_mse(decomposition.target, decomposition.components),
        "topk_mse": errors,
        "relative_error": relative,
        **scores,
        "effective_rank": float(np.average(ranks, weights=energies)) if energies.sum() else 0.0,
        "solved": rows if task.sample == "sparse" else relative <= SMALL_ERROR,
    }
    order = component_order(best, num_components=len(pieces))
    return numbers, LinearArrays(weight, pieces, values, ranks, best, recovered, order)


@functools.partial(jax.jit, static_argnames="objective")
def _errors(target: Target, components: Components, x: jax.Array, *, objective: Objective):
    """[B] squared error of the active components' output, and mean square of the target's."""
    mask = objective.select(objective.attribute(target, components, x).scores, x).mask
    outputs = target(x)
    masked = masked_apply(target, components, x, mask)
    return row_mse(masked, outputs), row_mse(0 * outputs, outputs)


def _topk_errors(task: LinearMap, decomposition: Decomposition, key: jax.Array, samples: int):
    """MSE of the output with the active components alone, and the mean square of the target's."""
    settings = decomposition.settings

    def batch(batch_key: jax.Array):
        x = task.inputs(batch_key, settings.batch_size)
        return _errors(
            decomposition.target, decomposition.components, x, objective=decomposition.objective
        )

    rows = stream(batch, key, num_batches(samples, settings.batch_size))
    return tuple(float(part.mean(dtype=np.float64)) for part in rows)
