"""Evidence: what a decomposition of any network must show, measured on held-out examples.

`rows` divides examples into blocks and chooses masks, `parts` runs them, `distance` compares
outputs, `adversary` looks for the worst masks, `equal_rank` has baselines without training, `cost`
counts the operations, `block_lines` and `baseline_lines` measure one block, `lines` measures
everything, `verdicts` judges it, `result` holds the outcome.
"""

from apd_jax.evaluation.evidence.adversary import Adversary
from apd_jax.evaluation.evidence.lines import evidence
from apd_jax.evaluation.evidence.result import Evidence
from apd_jax.evaluation.evidence.verdicts import Limits, Verdict

__all__ = ["Adversary", "Evidence", "Limits", "Verdict", "evidence"]
