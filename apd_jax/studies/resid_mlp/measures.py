"""Measures of a decomposed residual MLP.

Letters: C components, F features, N neurons of all layers, S samples.
"""

from typing import NamedTuple

import jax
import numpy as np

from apd_jax.components import Components
from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.objective.objective import Objective
from apd_jax.sites import Target
from apd_jax.studies.reconstruction import (
    LabelErrors,
    LabelFn,
    check_width,
    faithfulness_mse,
    label_errors,
)
from apd_jax.studies.resid_mlp.contributions import (
    Contributions,
    contribution_cosine,
    neuron_contributions,
    semantic_counts,
)
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
_MSES = ("topk", "scrubbed", "antiscrubbed", "random", "monosemantic", "zero")


class ResidualMLPArrays(NamedTuple):
    """Arrays for the figures of a residual MLP and its component browser.

    Attributes:
      feature_map: Component with the largest attribution for each one-hot input, [F] int.
      contributions: Neuron contributions.
      sweeps: Sweep of every input.
      samples: Errors of S samples of the training distribution.
      per_feature: Averages of these over the samples with one active feature.
      ablation: Response to one feature under random ablation.
      label_errors: MSE against the labels by number of active features.
    """

    feature_map: np.ndarray
    contributions: Contributions
    sweeps: FeatureSweeps
    samples: ScrubbingSamples
    per_feature: PerFeature
    ablation: AblationResponse
    label_errors: LabelErrors


def relu_labels(x: jax.Array) -> jax.Array:
    """Return the labels of the paper's residual MLPs, `x + ReLU(x)`, [B, F]."""
    return x + jax.nn.relu(x)


@jax.default_matmul_precision("highest")
def evaluate_resid_mlp(
    target: Target,
    components: Components,
    *,
    key: jax.Array,
    objective: Objective,
    label_fn: LabelFn = relu_labels,
    distribution: SparseFeatures | None = None,
    batch_size: int = 256,
    num_samples: int = 50_000,
    num_label_samples: int = 5_000,
) -> tuple[dict[str, float | int | bool], ResidualMLPArrays]:
    """Measure a decomposition of a residual MLP (section 3.2 and appendix of the paper).

    Arguments have no seed axis.

    Args:
      target: The residual MLP, [B, F] -> [B, F].
      components: Components of all of its MLP matrices.
      key: PRNG key; the same key gives the same numbers.
      objective: The objective of the training; its rule selects the active components.
      label_fn: Function of inputs [B, F] that returns the labels [B, F] of the target's training.
      distribution: Input distribution; by default independent features, active with p=0.01 and
        uniform in [-1, 1].
      batch_size: Rows per batch. Batch top-k selects within a batch, so use the training's size.
      num_samples: S, number of samples of the training distribution.
      num_label_samples: Number of samples for each number of active features.

    Returns:
      (numbers, arrays): numbers as Python values under their names in results.json, and
      `ResidualMLPArrays` on the host.

    Raises:
      UserError: The target lacks the sites of a residual MLP, the distribution has another number
        of features, or a count is below 1.
    """
    contributions = neuron_contributions(target, components)
    num_features = contributions.target.shape[0]
    distribution = distribution or SparseFeatures(num_features, 0.01, (-1.0, 1.0))
    check_width(distribution, num_features)
    feature_map = feature_component_map(
        target, components, num_features=num_features, objective=objective
    )
    network = _Network(target, components, label_fn, feature_map, contributions)
    sampling = _Sampling(objective, distribution, batch_size)
    arrays = network.arrays(key, sampling, num_samples, num_label_samples)
    return _numbers(faithfulness_mse(target, components), arrays), arrays


class _Sampling(NamedTuple):
    """The batches of inputs that are drawn, and the rule by which components are selected."""

    objective: Objective
    distribution: SparseFeatures
    batch_size: int


class _Network(NamedTuple):
    """A decomposed residual MLP, the labels of its training, and what its components do."""

    target: Target
    components: Components
    label_fn: LabelFn
    feature_map: jax.Array
    contributions: Contributions

    def arrays(
        self, key: jax.Array, sampling: _Sampling, num_samples: int, num_label_samples: int
    ) -> ResidualMLPArrays:
        """Measure everything; see `evaluate_resid_mlp`."""
        num_features, _ = self.contributions.target.shape
        samples = self.samples(jax.random.fold_in(key, 0), sampling, num_samples)
        return ResidualMLPArrays(
            feature_map=np.asarray(self.feature_map),
            contributions=self.contributions,
            sweeps=feature_sweeps(
                self.target,
                self.components,
                self.label_fn,
                self.feature_map,
                objective=sampling.objective,
            ),
            samples=samples,
            per_feature=per_feature(samples, num_features=num_features),
            ablation=ablation_response(
                self.target,
                self.components,
                self.feature_map,
                key=jax.random.fold_in(key, 1),
                feature=min(EXAMPLE_FEATURE, num_features - 1),
                num_features=num_features,
                objective=sampling.objective,
                batch_size=sampling.batch_size,
            ),
            label_errors=self.label_errors(jax.random.fold_in(key, 2), sampling, num_label_samples),
        )

    def samples(self, key: jax.Array, sampling: _Sampling, count: int) -> ScrubbingSamples:
        """Measure the errors on samples of the training distribution."""
        return scrubbing_samples(
            self.target,
            self.components,
            self.label_fn,
            self.feature_map,
            key=key,
            num_neurons=self.contributions.target.shape[1],
            num_samples=count,
            **sampling._asdict(),
        )

    def label_errors(self, key: jax.Array, sampling: _Sampling, count: int) -> LabelErrors:
        """Measure the errors against the labels by number of active features."""
        return label_errors(
            self.target,
            self.components,
            self.label_fn,
            key=key,
            max_active=MAX_ACTIVE,
            num_exact=self.contributions.target.shape[1],
            passthrough=True,
            num_samples=count,
            **sampling._asdict(),
        )


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
