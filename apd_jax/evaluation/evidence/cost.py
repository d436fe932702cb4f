"""What evidence takes, said before it starts.

Letters: C components.
"""

import dataclasses
import math

from apd_jax.evaluation.evidence.adversary import Adversary

# Passes that a gradient step costs, about: one forward and, since only masks need a gradient and
# no weights do, one backward.
GRADIENT = 2
ATTACKED_ROWS = 4096  # of the examples, that the adversary of a baseline meets at least


@dataclasses.dataclass(frozen=True)
class Cost:
    """Passes of the evidence.

    Attributes:
      examples, blocks, block_size: numbers of examples, of blocks, and of examples in a block.
      attributions: passes that score components.
      forwards: masked passes, and passes with other weights.
      gradients: steps of the adversary, of masks per row and of the shared mask.
      baselines: what is compared with at equal size; each scores, runs and attacks its own parts.
      baseline_gradients: steps of the adversary of all baselines.
      attacked: number of blocks that the adversary of baselines meets.
      operations: floating-point operations of one masked pass through a block.
    """

    examples: int
    blocks: int
    block_size: int
    attributions: int
    forwards: int
    gradients: int
    baselines: int
    baseline_gradients: int
    attacked: int
    operations: float

    @property
    def passes(self) -> int:
        """All of them, as masked passes through a block: what the progress bar counts."""
        each = self.attributions + self.forwards + GRADIENT * self.gradients
        return self.blocks * each + self.attacked * GRADIENT * self.baseline_gradients

    def __str__(self) -> str:
        return (
            f"Evidence on {self.examples} examples takes about {self.passes} forward runs of "
            f"{self.block_size} examples, {self.passes * self.operations:.2g} floating-point "
            "operations."
        )


def attacked_blocks(blocks: int, rows: int) -> int:
    """Number of blocks of so many rows that the adversary of baselines meets.

    Baselines have a term for every direction of every matrix: attacking them on all examples would
    cost several times as much as everything else.
    """
    return min(blocks, math.ceil(ATTACKED_ROWS / rows))


def estimate(
    *,
    rows: int,
    examples: int,
    blocks: int,
    block_size: int,
    sites: int,
    draws: int,
    labels: bool,
    adversary: Adversary,
    baselines: int,
    operations: float,
) -> Cost:
    """Count the passes.

    Args:
      rows: number of rows of a block: of examples, or of positions of them.
      examples, blocks, block_size: numbers of examples, of blocks, and of examples in a block.
      sites: number of sites, each replaced by its sum on its own.
      draws: random masks a line.
      labels: whether there are labels, for which the target's own pass is compared too.
      adversary: attack on the decomposition; baselines get its smallest number of steps.
      baselines: number of baselines.
      operations: floating-point operations of one masked pass through a block.
    """
    fixed = 7  # own, all, zero, two pooled, never needed, permuted
    shared = adversary.starts * (adversary.steps[-1] + 1)
    return Cost(
        examples=examples,
        blocks=blocks,
        block_size=block_size,
        attributions=1 + baselines,
        forwards=fixed + 2 * draws + sites + labels + baselines * (1 + draws),
        gradients=adversary.gradients + shared,
        baselines=baselines,
        baseline_gradients=baselines * adversary.starts * adversary.steps[0],
        attacked=attacked_blocks(blocks, rows),
        operations=operations,
    )
