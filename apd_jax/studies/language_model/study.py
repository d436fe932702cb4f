"""A byte-level language model of Python source, with components chosen for every byte."""

import jax

from apd_jax.decomposition.result import Decomposition
from apd_jax.report.contexts import content
from apd_jax.studies.language_model.captions import CAPTIONS, MEASURES
from apd_jax.studies.language_model.figures import FIGURES
from apd_jax.studies.language_model.measures import (
    LEAST_RECOVERED,
    MOST_KL,
    LanguageArrays,
    evaluate_language_model,
)
from apd_jax.studies.language_model.network import LanguageModel
from apd_jax.studies.study import Study
from apd_jax.studies.verdicts import Threshold

_RANK = 96  # active rank of a layer's six matrices: 8 components of rank 2
_LINES = {"own": "the own mask", "random": "random masks", "adversarial_20": "an adversary"}


class LanguageModelStudy(Study):
    """Does a language model come apart into components, few of which explain a position?"""

    name = "language_model"
    task = LanguageModel()
    captions = CAPTIONS
    figures = FIGURES
    main_figure = "curves"
    measures = MEASURES

    def title(self, variant: str) -> str:
        return f"Language model of bytes, {variant} layer{'s' * (variant != '1')}"

    def description(self, task: LanguageModel) -> str:
        layers = f"{task.layers} layer{'s' * (task.layers != 1)}"
        return (
            f"The target is a transformer of {layers} and width {task.width} that "
            "predicts the next byte of Python source, the modules of the standard library. Its "
            "attention and MLP matrices are decomposed, and components are chosen for every byte."
        )

    def thresholds(self, variant: str) -> list[Threshold]:
        size = [
            Threshold("evidence_l0", "<=", 8, "Few components are active per byte"),
            Threshold(
                "evidence_active_rank",
                "<=",
                _RANK * int(variant),
                "The active components have a low total rank",
            ),
            Threshold("evidence_always_on", "<=", 1, "At most one component is always on"),
        ]
        lines = [
            Threshold(
                "evidence_ce_recovered",
                ">=",
                LEAST_RECOVERED,
                "The active components predict nearly as well as the network",
            ),
            Threshold(
                "evidence_own",
                "<=",
                MOST_KL,
                "The active components give nearly the network's output",
            ),
            Threshold(
                "evidence_random",
                "<=",
                0.3,
                "The output stays close with random parts of the inactive components on",
            ),
            Threshold(
                "evidence_adversarial_20",
                "<=",
                2.5,
                "The output stays close with the worst parts of the inactive components on",
            ),
            Threshold(
                "evidence_faithfulness_worst",
                "<=",
                0.001,
                "Components add up to every matrix",
            ),
            Threshold(
                "ce_of_sum_above_target", "<=", 0.02, "All components predict like the network"
            ),
        ]
        return size + lines + _against_baselines()

    def evidence_examples(self, task: LanguageModel, key: jax.Array, samples: int):
        return task.held_out(key, samples), "next_tokens"

    def evaluate(
        self, task: LanguageModel, decomposition: Decomposition, *, key: jax.Array, samples: int
    ):
        return evaluate_language_model(task, decomposition, key=key, samples=samples)

    def contexts(self, arrays: LanguageArrays):
        return content(arrays.components, arrays.drawn)


def _against_baselines() -> list[Threshold]:
    """Every line that must be better than what needs no training."""
    names = {
        "bundled": ("bundles of singular vectors", tuple(_LINES)),
        "svd": ("singular vectors", ("own", "adversarial_20")),
        "neurons": ("neurons", ("own", "adversarial_20")),
    }
    return [
        Threshold(
            f"evidence_{line}",
            "<=",
            f"evidence_{baseline}_{line}",
            f"The components do better than {words} under {_LINES[line]}",
        )
        for baseline, (words, lines) in names.items()
        for line in lines
    ]


STUDY = LanguageModelStudy()
