"""Residual MLPs (section 3.2 and 3.3 of the paper; three layers are SPD's)."""

import math

import jax
import ml_collections
import numpy as np

from apd_jax.decomposition import Decomposition
from apd_jax.errors import UserError
from apd_jax.inputs import SparseFeatures
from apd_jax.report.browser import View
from apd_jax.sites import Target
from apd_jax.studies.resid_mlp.captions import CAPTIONS
from apd_jax.studies.resid_mlp.figures import resid_mlp_figures
from apd_jax.studies.resid_mlp.measures import ResidualMLPArrays, evaluate_resid_mlp
from apd_jax.studies.resid_mlp.network import ResidualMLP, ResidualMLPTask
from apd_jax.studies.verdicts import Published, Threshold

MAIN_FIGURE = "neuron_contributions"
_KEYS = {
    "topk_mse": ("MSE, top-k", "mean squared difference from the target's output, batch top-k"),
    "scrubbed_mse": (
        "MSE, scrubbed",
        "the same with the components of the active features and a random half of all others",
    ),
    "antiscrubbed_mse": (
        "MSE, anti-scrubbed",
        "the same with a random half, without the components of the active features",
    ),
    "monosemantic_mse": (
        "MSE, monosemantic baseline",
        "the same for exact labels of as many features as there are neurons, y = x for the rest",
    ),
}
_PAPER = {
    "1": ("≈ 1.2e-4", "≈ 2.65e-4", "≈ 1.36e-3", "≈ 8.5e-4"),
    "2": ("≈ 0.9e-4", "≈ 4.0e-4", "≈ 1.55e-3", "≈ 8.3e-4"),
    "3": (None, None, None, None),
}
_LIMITS = {"1": (1.2e-4, 2.65e-4), "2": (0.9e-4, 4.0e-4), "3": (0.9e-4, 4.0e-4)}


def published(variant: str) -> list[Published]:
    """Numbers of the paper for a variant; "≈" marks that they are read off its figures.

    Raises:
      UserError: an unknown variant.
    """
    if variant not in _PAPER:
        raise UserError(f"variant must be one of {sorted(_PAPER)}, got {variant!r}")
    return [
        Published(key, label, paper, None, definition)
        for (key, (label, definition)), paper in zip(_KEYS.items(), _PAPER[variant], strict=True)
    ]


def thresholds(variant: str) -> list[Threshold]:
    """What a good decomposition reaches."""
    topk, scrubbed = _LIMITS[variant]
    return [
        Threshold("topk_mse_mean", "<=", topk, "Top-k output is close to the target's"),
        Threshold("scrubbed_mse_mean", "<=", scrubbed, "Inactive components can be removed"),
        Threshold(
            "antiscrubbed_over_monosemantic_mean",
            ">=",
            1.0,
            "Removing active components is worse than the monosemantic baseline",
        ),
        Threshold(
            "monosemantic_over_target_mean", ">=", 1.0, "The target beats the monosemantic baseline"
        ),
        Threshold("features_represented_mean", ">=", 95, "Features that a component represents"),
    ]


def make_task(config: ml_collections.FrozenConfigDict) -> ResidualMLPTask:
    """The network, its inputs and labels.

    Raises:
      UserError: a field out of its range.
    """
    target = config.target
    for name in ("num_features", "d_resid"):
        if target[name] < 1:
            raise UserError(f"target.{name} must be at least 1, got {target[name]}")
    if not target.neurons or min(target.neurons) < 1:
        raise UserError(f"target.neurons needs a width per layer, each >= 1; got {target.neurons}")
    inputs = SparseFeatures(
        num_features=target.num_features,
        probability=target.probability,
        value_range=(-1.0, 1.0),
        mode=target.input_mode,
        num_active=target.num_active,
        synced=tuple(map(tuple, target.synced)),
    )
    module = ResidualMLP(
        num_features=target.num_features,
        d_resid=target.d_resid,
        neurons=tuple(target.neurons),
        activation=target.activation,
        in_bias=target.in_bias,
        out_bias=target.out_bias,
        output_activation=target.output_activation,
    )
    return ResidualMLPTask(
        module=module,
        inputs=inputs,
        embedding=target.embedding,
        label_kind=target.label_kind,
        label_coefficients=_label_coefficients(target),
        importance=tuple(target.importance) or None,
    )


def _label_coefficients(target) -> tuple[float, ...] | None:
    """Random label coefficients in [1, 2] where a label seed is set, else 1."""
    if target.label_seed is None:
        return None
    key = jax.random.key(target.label_seed)
    drawn = jax.random.uniform(key, (target.num_features,), minval=1.0, maxval=2.0)
    return tuple(float(value) for value in drawn)


def _ratio(above: float, below: float) -> float:
    """NaN where `below` is 0, as in samples of which none has an active feature."""
    return float(above / below) if below else math.nan


def evaluate(
    task: ResidualMLPTask, decomposition: Decomposition, attributions, key: jax.Array, samples
):
    """Numbers of results.json, and arrays for the figures."""
    settings = decomposition.settings
    numbers, arrays = evaluate_resid_mlp(
        decomposition.target,
        decomposition.components,
        key=key,
        objective=settings.objective,
        label_fn=task.labels,
        distribution=task.inputs,
        batch_size=settings.batch_size,
        num_samples=samples,
        attributions=attributions,
    )
    errors = arrays.label_errors  # the first group is the training distribution
    ratios = {
        "antiscrubbed_over_monosemantic": _ratio(
            numbers["antiscrubbed_mse"], numbers["monosemantic_mse"]
        ),
        "monosemantic_over_target": _ratio(errors.baseline[0], errors.target[0]),
    }
    return {**numbers, **ratios}, arrays


def draw(numbers, arrays: ResidualMLPArrays, only: str | None = None):
    """Figures by name; one of them alone if `only` is given."""
    return resid_mlp_figures(numbers, arrays, only=only)


def represented(arrays: ResidualMLPArrays) -> list[list[int]]:
    """For every component, the features that it represents."""
    return [row.nonzero()[0].tolist() for row in arrays.contributions.represents]


def views(target: Target) -> dict[str, View]:
    """How the browser shows each site: the residual stream by feature."""
    embed, unembed = (np.asarray(target.params[name]) for name in ("W_E", "W_U"))
    return {
        site: View("feature", "neuron", left=embed)
        if site.endswith("mlp_in")
        else View("neuron", "feature", right=unembed)
        for site in target.sites
    }


__all__ = [
    "CAPTIONS",
    "MAIN_FIGURE",
    "draw",
    "evaluate",
    "make_task",
    "published",
    "represented",
    "thresholds",
    "views",
]
