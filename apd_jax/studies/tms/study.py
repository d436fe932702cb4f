"""Toy models of superposition (section 3.1 of the paper; the +ID variants are SPD's)."""

from apd_jax.report.browser import View
from apd_jax.sites import Target
from apd_jax.studies import probes
from apd_jax.studies.reconstruction import features_held
from apd_jax.studies.study import Study
from apd_jax.studies.tms.captions import CAPTIONS, MEASURES
from apd_jax.studies.tms.figures import FIGURES
from apd_jax.studies.tms.measures import TMSArrays, evaluate_tms
from apd_jax.studies.tms.network import LINEAR, TMSTask
from apd_jax.studies.verdicts import Published, Threshold
from apd_jax.training.presets import SUFFIX

_MMCS = "mean over features of the largest cosine between a component's row and the target's"
_ML2R = "mean over features of the best component's row norm divided by the target's"
_VALUES = {
    "5-2": (("0.998 ± 0.000", "0.893 ± 0.004"), ("1.000", "0.993 ± 0.002")),
    "40-10": (("0.996 ± 0.003", "0.935 ± 0.001"), ("1.000", "1.010 ± 0.007")),
    "5-2-id": ((None, None), ("1.000", "0.992 ± 0.010")),
    "40-10-id": ((None, None), ("1.000", "1.031 ± 0.001")),
}


class TMSStudy(Study):
    """Does each component hold one feature?"""

    name = "tms"
    task = TMSTask()
    captions = CAPTIONS
    figures = FIGURES
    main_figure = "components"
    measures = MEASURES
    evaluate = staticmethod(evaluate_tms)

    def title(self, variant: str) -> str:
        return f"Toy model of superposition {variant}"

    def description(self, task: TMSTask) -> str:
        return (
            "The target is a toy model of superposition, y = ReLU(x W Wᵀ + b), with more sparse "
            "input features than hidden dimensions."
        )

    def published(self, variant: str) -> list[Published]:
        paper, spd = _VALUES[variant.removesuffix(SUFFIX)]
        return [
            Published("mmcs", "MMCS", paper[0], spd[0], _MMCS),
            Published("ml2r", "ML2R", paper[1], spd[1], _ML2R),
        ]

    def thresholds(self, variant: str) -> list[Threshold]:
        return [
            Threshold("mmcs_mean", ">=", 0.99, "Components point along the features (MMCS)"),
            Threshold("ml2r_mean", ">=", 0.85, "Components have the norm of the features (ML2R)"),
            Threshold(
                "solve_rate", ">=", 1.0, "In every seed, each feature has a component of its own"
            ),
        ]

    def probes(self, task: TMSTask):
        return probes.one_hot(task.inputs.num_features)

    def represented(self, arrays: TMSArrays) -> list[list[int]]:
        """The features that each component recovers."""
        return features_held(arrays.best_component, arrays.recovered, len(arrays.components))

    def views(self, target: Target) -> dict[str, View]:
        hidden = {
            site: View("hidden unit", "hidden unit") for site in target.sites if site != LINEAR
        }
        return {LINEAR: View("feature", "hidden unit"), **hidden}


STUDY = TMSStudy()
