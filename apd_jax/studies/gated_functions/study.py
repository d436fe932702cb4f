"""Hand-coded gated functions (the paper's appendix): is every weight in the right component?"""

import numpy as np

from apd_jax.report.browser import View
from apd_jax.sites import Target
from apd_jax.studies.gated_functions.captions import CAPTIONS, MEASURES
from apd_jax.studies.gated_functions.figures import FIGURES
from apd_jax.studies.gated_functions.measures import (
    PURE,
    GatedArrays,
    evaluate_gated,
    one_bit_inputs,
)
from apd_jax.studies.gated_functions.network import GatedFunctions
from apd_jax.studies.reconstruction import features_held
from apd_jax.studies.study import ProbeInputs, Study
from apd_jax.studies.verdicts import Threshold


class GatedFunctionsStudy(Study):
    """Does each component hold one function, and all of it?"""

    name = "gated_functions"
    task = GatedFunctions()
    captions = CAPTIONS
    figures = FIGURES
    main_figure = "networks"
    measures = MEASURES
    evaluate = staticmethod(evaluate_gated)

    def title(self, variant: str) -> str:
        return f"Hand-coded gated functions, {variant}"

    def description(self, task: GatedFunctions) -> str:
        return (
            f"The target is a hand-coded network of {task.num_functions} gated functions: each "
            f"control bit switches on one function of x, which {task.neurons} neurons compute. "
            "Each neuron belongs to one function, so the true component of each weight is known."
        )

    def thresholds(self, variant: str) -> list[Threshold]:
        return [
            Threshold(
                "weight_purity_mean", ">=", 0.98, "Weights are in the component of their function"
            ),
            Threshold(
                "solve_rate",
                ">=",
                1.0 if variant == "small" else 14 / 16,
                "Every function has a purity of at least 0.95 (share of seeds)",
            ),
        ]

    def probes(self, task: GatedFunctions) -> ProbeInputs:
        """Inputs with one bit on, and x in the middle of its domain."""
        middle = np.array([sum(task.domain) / 2])
        words = f"x is {middle[0]:g}, one control bit is 1, all others are 0"
        return ProbeInputs(one_bit_inputs(task, middle), words)

    def represented(self, arrays: GatedArrays) -> list[list[int]]:
        """For every component, its functions with a purity of at least 0.95."""
        return features_held(arrays.assignment, arrays.purity >= PURE, len(arrays.shares))

    def views(self, target: Target) -> dict[str, View]:
        return {
            site: View("stream", "neuron") if "mlp_in" in site else View("neuron", "stream")
            for site in target.sites
        }


STUDY = GatedFunctionsStudy()
