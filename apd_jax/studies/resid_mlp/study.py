"""Residual MLPs (section 3.2 and 3.3 of the paper; three layers are SPD's)."""

import math

import jax
import numpy as np

from apd_jax.decomposition.result import Decomposition
from apd_jax.report import numbers as text
from apd_jax.report.browser import View
from apd_jax.sites import Target
from apd_jax.studies import probes
from apd_jax.studies.resid_mlp.captions import CAPTIONS, MEASURES
from apd_jax.studies.resid_mlp.figures import FIGURES
from apd_jax.studies.resid_mlp.measures import ResidualMLPArrays, evaluate_resid_mlp
from apd_jax.studies.resid_mlp.network import ResidualMLPTask
from apd_jax.studies.study import Study
from apd_jax.studies.verdicts import Published, Threshold
from apd_jax.training.presets import SUFFIX

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
        "the same with exact labels for as many features as there are neurons, y = x for the rest",
    ),
}
_PAPER = {
    "1": ("≈ 1.2e-4", "≈ 2.65e-4", "≈ 1.36e-3", "≈ 8.5e-4"),
    "2": ("≈ 0.9e-4", "≈ 4.0e-4", "≈ 1.55e-3", "≈ 8.3e-4"),
    "3": (None, None, None, None),
}
_LIMITS = {"1": (1.2e-4, 2.65e-4), "2": (0.9e-4, 4.0e-4), "3": (0.9e-4, 4.0e-4)}


class ResidualMLPStudy(Study):
    """Does each component hold one of the functions that the network computes?"""

    name = "resid_mlp"
    task = ResidualMLPTask()
    captions = CAPTIONS
    figures = FIGURES
    main_figure = "neuron_contributions"
    measures = MEASURES

    def title(self, variant: str) -> str:
        layers = variant.removesuffix(SUFFIX)
        words = f"Residual MLP, {layers} layer{'' if layers == '1' else 's'}"
        return words if layers == variant else f"{words}, robust"

    def description(self, task: ResidualMLPTask) -> str:
        inside = "x" if task.label_seed is None else "c·x"
        activation = {"gelu": "GELU"}.get(task.activation, "ReLU")
        labels = f"|{inside}|" if task.label_kind == "abs" else f"x + {activation}({inside})"
        drawn = "" if inside == "x" else ", with c drawn between 1 and 2 for each"
        return (
            f"The target is a residual MLP with {text.number(sum(task.neurons))} neurons. It is "
            f"trained to output {labels} for each of {text.number(task.inputs.num_features)} "
            f"sparse input features{drawn}."
        )

    def published(self, variant: str) -> list[Published]:
        """The paper's numbers; "≈" marks numbers that are read off its figures."""
        return [
            Published(key, label, paper, None, definition)
            for (key, (label, definition)), paper in zip(
                _KEYS.items(), _PAPER[variant.removesuffix(SUFFIX)], strict=True
            )
        ]

    def thresholds(self, variant: str) -> list[Threshold]:
        topk, scrubbed = _LIMITS[variant.removesuffix(SUFFIX)]
        return [
            Threshold("topk_mse_mean", "<=", topk, "The top-k output is close to the target's"),
            Threshold("scrubbed_mse_mean", "<=", scrubbed, "Inactive components can be removed"),
            Threshold(
                "antiscrubbed_over_monosemantic_mean",
                ">=",
                1.0,
                "Removing the active components is worse than the monosemantic baseline",
            ),
            Threshold(
                "monosemantic_over_target_mean",
                ">=",
                1.0,
                "The target is better than the monosemantic baseline",
            ),
            Threshold(
                "features_represented_mean", ">=", 95, "Number of features that are represented"
            ),
        ]

    def evaluate(
        self, task: ResidualMLPTask, decomposition: Decomposition, *, key: jax.Array, samples: int
    ):
        numbers, arrays = evaluate_resid_mlp(task, decomposition, key=key, samples=samples)
        errors = arrays.label_errors  # the first group is the training distribution
        ratios = {
            "antiscrubbed_over_monosemantic": _ratio(
                numbers["antiscrubbed_mse"], numbers["monosemantic_mse"]
            ),
            "monosemantic_over_target": _ratio(errors.baseline[0], errors.target[0]),
        }
        return {**numbers, **ratios}, arrays

    def probes(self, task: ResidualMLPTask):
        return probes.one_hot(task.inputs.num_features)

    def represented(self, arrays: ResidualMLPArrays) -> list[list[int]]:
        """For every component, the features with a large neuron contribution."""
        return [row.nonzero()[0].tolist() for row in arrays.contributions.represents]

    def views(self, target: Target) -> dict[str, View]:
        """Views that show the residual stream in the basis of features."""
        embed, unembed = (np.asarray(target.params[name]) for name in ("W_E", "W_U"))
        return {
            site: View("feature", "neuron", left=embed)
            if site.endswith("mlp_in/kernel")
            else View("neuron", "feature", right=unembed)
            for site in target.sites
        }


def _ratio(above: float, below: float) -> float:
    """The ratio, or NaN if `below` is 0, as with samples without any active feature."""
    return float(above / below) if below else math.nan


STUDY = ResidualMLPStudy()
