"""Measures of a decomposed linear map: recovery of its rows, and rank of the components.

Letters: C components, d width.
"""

from typing import NamedTuple

import jax
import numpy as np

from apd_jax.decomposition.result import Decomposition
from apd_jax.studies.linear_map.network import LinearMap
from apd_jax.studies.reconstruction import faithfulness_mse, topk_errors
from apd_jax.studies.tms.measures import component_order, row_similarity, superposition_scores

SMALL_ERROR = 0.01


class LinearArrays(NamedTuple):
    """Arrays for the figures of a linear map and the component browser.

    Attributes:
      target: W, one row per input, [d, d].
      components: matrices of the components, [C, d, d].
      singular_values: singular values of the components in decreasing order, [C, d].
      effective_ranks: effective ranks of the components (see `effective_ranks`), [C].
      best_component: for each row, the component with the largest cosine to it, [d] int.
      recovered: whether the best component has the row's direction and length, [d] bool.
      order: components in the order of the rows that they are best for, [C] int.
    """

    target: np.ndarray
    components: np.ndarray
    singular_values: np.ndarray
    effective_ranks: np.ndarray
    best_component: np.ndarray
    recovered: np.ndarray
    order: np.ndarray


def effective_ranks(singular_values: np.ndarray) -> np.ndarray:
    """The effective rank `(Σ σ)² / Σ σ²` of every component, [C].

    It is r for r equal nonzero singular values, and 0 if all are zero.

    Args:
      singular_values: singular values of the components, [C, d].
    """
    squares = np.square(singular_values).sum(axis=1)
    sums = np.square(singular_values.sum(axis=1))
    return np.divide(sums, squares, out=np.zeros_like(squares), where=squares > 0)


@jax.default_matmul_precision("highest")
def evaluate_linear_map(
    task: LinearMap, decomposition: Decomposition, *, key: jax.Array, samples: int
) -> tuple[dict[str, float | int | bool], LinearArrays]:
    """Measure a decomposition of a linear map.

    The arguments are those of `Study.evaluate`.

    Returns:
      (numbers, arrays): numbers for results.json, and `LinearArrays`. `solved` is true if every
      row of W has a component of its own (sparse inputs), or if the error of the top-k output is
      at most 1 % of its mean square (Gaussian inputs).
    """
    (site,) = decomposition.target.sites
    weight = np.asarray(decomposition.target.weights[site], np.float64)
    pieces = np.asarray(decomposition.components[site].matrices(), np.float64)
    values = np.linalg.svd(pieces, compute_uv=False)
    ranks, energies = effective_ranks(values), np.square(values).sum(axis=1)
    scores, best, recovered = superposition_scores(*row_similarity(weight, pieces))
    error, square = topk_errors(
        task.inputs,
        decomposition.target,
        decomposition.components,
        objective=decomposition.objective,
        key=key,
        batch_size=decomposition.settings.batch_size,
        num_samples=samples,
    )
    relative = error / square
    rows = scores["features_recovered"] == len(weight)
    numbers = {
        "faithfulness_mse": faithfulness_mse(decomposition.target, decomposition.components),
        "topk_mse": error,
        "relative_error": relative,
        **scores,
        "effective_rank": float(np.average(ranks, weights=energies)) if energies.sum() else 0.0,
        "solved": rows if task.sample == "sparse" else relative <= SMALL_ERROR,
    }
    order = component_order(best, num_components=len(pieces))
    return numbers, LinearArrays(weight, pieces, values, ranks, best, recovered, order)
