"""Linear maps: the effect of the losses on the simplest network."""

from apd_jax.report.browser import View
from apd_jax.sites import Target
from apd_jax.studies import probes
from apd_jax.studies.linear_map.captions import CAPTIONS, MEASURES
from apd_jax.studies.linear_map.figures import FIGURES
from apd_jax.studies.linear_map.measures import SMALL_ERROR, LinearArrays, evaluate_linear_map
from apd_jax.studies.linear_map.network import LinearMap
from apd_jax.studies.reconstruction import features_held
from apd_jax.studies.study import ProbeInputs, Study
from apd_jax.studies.verdicts import Threshold


class LinearMapStudy(Study):
    """Does each component hold one row of the matrix?"""

    name = "linear_map"
    task = LinearMap()
    captions = CAPTIONS
    figures = FIGURES
    main_figure = "matrices"
    measures = MEASURES
    evaluate = staticmethod(evaluate_linear_map)

    def title(self, variant: str) -> str:
        return f"Linear map, {variant}"

    def description(self, task: LinearMap) -> str:
        matrix = {
            "identity": "the identity",
            "orthogonal": "a random orthogonal matrix",
            "low-rank": f"a random matrix of rank {task.map_rank}",
        }[task.kind]
        inputs = "sparse" if task.sample == "sparse" else "dense, Gaussian"
        return f"The target is a linear map of {inputs} inputs, y = x W, with W {matrix}."

    def thresholds(self, variant: str) -> list[Threshold]:
        if variant.endswith("gaussian"):
            return [
                Threshold(
                    "relative_error_mean",
                    "<=",
                    SMALL_ERROR,
                    "The active components reproduce the output",
                )
            ]
        return [
            Threshold(
                "solve_rate", ">=", 1.0, "In every seed, each row has a component of its own"
            ),
            Threshold("effective_rank_mean", "<=", 1.1, "Components have rank 1"),
        ]

    def probes(self, task: LinearMap) -> ProbeInputs:
        return probes.one_hot(task.width)

    def represented(self, arrays: LinearArrays) -> list[list[int]]:
        """The rows that each component recovers."""
        return features_held(arrays.best_component, arrays.recovered, len(arrays.components))

    def views(self, target: Target) -> dict[str, View]:
        return {site: View("input", "output") for site in target.sites}


STUDY = LinearMapStudy()
