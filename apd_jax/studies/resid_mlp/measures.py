"""Measures of a decomposed residual MLP.

Letters: C components, F features, N neurons of all layers, S samples.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from apd_jax.decomposition.result import Decomposition
from apd_jax.studies.reconstruction import LabelErrors, faithfulness_mse, label_errors
from apd_jax.studies.resid_mlp.contributions import (
    Contributions,
    contribution_cosine,
    neuron_contributions,
    semantic_counts,
)
from apd_jax.studies.resid_mlp.network import ResidualMLPTask
from apd_jax.studies.resid_mlp.scrubbing import (
    PerFeature,
    ScrubbingSamples,
    feature_component_map,
    per_feature,
    scrubbing_samples,
)
from apd_jax.studies.resid_mlp.single_features import (
    AblationResponse,
    FeatureSweeps,
    ablation_response,
    feature_sweeps,
)

MAX_ACTIVE = 5
EXAMPLE_FEATURE = 42
_LABEL_SAMPLES = 5_000  # for each number of active features
_MSES = ("topk", "scrubbed", "antiscrubbed", "random", "monosemantic", "zero")


class ResidualMLPArrays(NamedTuple):
    """Arrays for the figures of a residual MLP and its component browser.

    Attributes:
      feature_map: component with the largest attribution for each one-hot input, [F] int.
      contributions: neuron contributions.
      sweeps: sweep of every input.
      samples: errors of S samples of the training distribution.
      per_feature: averages of these over the samples with one active feature.
      ablation: response to one feature under random ablation.
      label_errors: MSE against the labels by number of active features.
    """

    feature_map: np.ndarray
    contributions: Contributions
    sweeps: FeatureSweeps
    samples: ScrubbingSamples
    per_feature: PerFeature
    ablation: AblationResponse
    label_errors: LabelErrors


@jax.default_matmul_precision("highest")
def evaluate_resid_mlp(
    task: ResidualMLPTask, decomposition: Decomposition, *, key: jax.Array, samples: int
) -> tuple[dict[str, float | int | bool], ResidualMLPArrays]:
    """Measure a decomposition of a residual MLP (section 3.2 and appendix of the paper).

    The arguments are those of `Study.evaluate`.

    Returns:
      (numbers, arrays): numbers as Python values under their names in results.json, and
      `ResidualMLPArrays` on the host.

    Raises:
      UserError: the target lacks the sites of a residual MLP, or a count is below 1.
    """
    pair = decomposition.target, decomposition.components
    objective, batch_size = decomposition.objective, decomposition.settings.batch_size
    contributions = neuron_contributions(*pair)
    num_features, num_neurons = contributions.target.shape
    feature_map = feature_component_map(*pair, num_features=num_features, objective=objective)
    sampling: dict[str, Any] = {
        "objective": objective,
        "distribution": task.inputs,
        "batch_size": batch_size,
    }
    scrubbed = scrubbing_samples(
        *pair,
        task.labels,
        feature_map,
        key=jax.random.fold_in(key, 0),
        num_neurons=num_neurons,
        num_samples=samples,
        **sampling,
    )
    arrays = ResidualMLPArrays(
        feature_map=np.asarray(feature_map),
        contributions=contributions,
        sweeps=feature_sweeps(*pair, task.labels, feature_map, objective=objective),
        samples=scrubbed,
        per_feature=per_feature(scrubbed, num_features=num_features),
        ablation=ablation_response(
            *pair,
            feature_map,
            key=jax.random.fold_in(key, 1),
            feature=min(EXAMPLE_FEATURE, num_features - 1),
            objective=objective,
            batch_size=batch_size,
        ),
        label_errors=label_errors(
            *pair,
            task.labels,
            key=jax.random.fold_in(key, 2),
            max_active=MAX_ACTIVE,
            num_exact=num_neurons,
            passthrough=True,
            num_samples=_LABEL_SAMPLES,
            **sampling,
        ),
    )
    return _numbers(faithfulness_mse(*pair), arrays), arrays


def _numbers(faithfulness: float, arrays: ResidualMLPArrays) -> dict[str, float | int | bool]:
    """Reduce the arrays to the numbers of results.json.

    The standard error of a mean over S samples is `std / sqrt(S)`. It describes the sampling of
    inputs for the same decomposition, not the variation over seeds.
    """
    samples, sweeps = arrays.samples, arrays.sweeps
    distinct = np.unique(arrays.feature_map).size == arrays.feature_map.size
    errors = {name: np.asarray(getattr(samples, name), np.float64) for name in _MSES}
    standard_errors = {name: e.std() / np.sqrt(e.size) for name, e in errors.items()}
    return {
        "faithfulness_mse": faithfulness,
        **{f"{name}_mse": float(e.mean()) for name, e in errors.items()},
        **{f"{name}_mse_standard_error": float(e) for name, e in standard_errors.items()},
        "contribution_cosine": contribution_cosine(arrays.contributions),
        **semantic_counts(arrays.contributions.represents),
        "single_component_features": int(sweeps.held.sum()),
        "two_component_features": int(sweeps.held_by_two.sum()),
        "solved": bool(sweeps.held.all() and distinct),
    }
