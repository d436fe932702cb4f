"""The cost of the evidence, stated before it starts.

Letters: B examples of a block, T positions, C components, Q terms of a baseline.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.components import Components, num_components
from apd_jax.evaluation import seen
from apd_jax.evaluation.evidence import distance, equal_rank
from apd_jax.evaluation.evidence.adversary import Adversary, ascend, shared_gradient
from apd_jax.evaluation.evidence.distance import Kind
from apd_jax.evaluation.evidence.parts import Parts
from apd_jax.evaluation.evidence.rows import Examples
from apd_jax.objective.objective import Objective
from apd_jax.sites import Target

ATTACKED_ROWS = 2048  # rows that the adversary of a baseline attacks, at least
MASKS = 4  # own, two pooled, permuted
WEIGHTS = 3  # all, zero, never needed


class Part(NamedTuple):
    """One kind of work.

    Attributes:
      title: name for people.
      runs: how often its program is run, on all blocks together.
      operations: floating-point operations of one run; NaN where the backend does not count them.
    """

    title: str
    runs: float
    operations: float

    @property
    def total(self) -> float:
        """Floating-point operations of all runs."""
        return self.runs * self.operations


@dataclasses.dataclass(frozen=True)
class Cost:
    """Work of the evidence.

    Attributes:
      examples, blocks, block_size: numbers of examples, of blocks, and of examples in a block.
      attacked: number of blocks that the adversary of baselines attacks.
      parts: `{name: Part}`.
    """

    examples: int
    blocks: int
    block_size: int
    attacked: int
    parts: Mapping[str, Part]

    @property
    def operations(self) -> float:
        """Floating-point operations."""
        return sum(part.total for part in self.parts.values())

    def weight(self, name: str) -> float:
        """The operations of a part over those of a masked forward pass."""
        found = self.parts[name].operations / self.parts["masks"].operations
        return found if math.isfinite(found) else 1.0

    @property
    def passes(self) -> int:
        """The work in masked forward passes over a block: what the progress bar counts."""
        return round(sum(part.runs * self.weight(name) for name, part in self.parts.items()))

    def shares(self) -> dict[str, float]:
        """Share of the operations by title, the largest first."""
        found: dict[str, float] = {}
        for part in self.parts.values():
            found[part.title] = found.get(part.title, 0.0) + part.total / self.operations
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def __str__(self) -> str:
        start = (
            f"Evidence on {self.examples} examples takes about {self.operations:.2g} "
            f"floating-point operations, as many as {self.passes} forward passes over "
            f"{self.block_size} examples"
        )
        if not math.isfinite(self.operations):
            return f"Evidence takes about {self.passes} passes over {self.block_size} examples."
        return f"{start} ({', '.join(f'{t} {s:.0%}' for t, s in self.shares().items())})."


def attacked_blocks(blocks: int, rows: int) -> int:
    """Number of blocks, of so many rows each, that the adversary of baselines attacks.

    Baselines have a term for every direction of every matrix: attacking them on all examples would
    cost about as much as everything else.
    """
    return min(blocks, math.ceil(ATTACKED_ROWS / rows))


def estimate(
    *,
    objective: Objective,
    target: Target,
    components: Components,
    kind: Kind,
    block: Examples,
    examples: int,
    blocks: int,
    draws: int,
    adversary: Adversary,
    baselines: tuple[str, ...],
) -> Cost:
    """Count the operations of all programs, which are traced and not run.

    Args:
      objective, target, components: those of the decomposition.
      kind: the distance.
      block: a block, with the target's outputs.
      examples, blocks: numbers of examples and of blocks.
      draws: number of random masks per line.
      adversary: attack on the decomposition; baselines get its smallest number of steps.
      baselines: names of the baselines.
    """
    mask = _scores(objective, target, components, block)
    shape = (objective, target, components, block.x)
    attacked = attacked_blocks(blocks, math.prod(mask.shape[:-1]))
    own, step = _of_parts(kind, target, Parts(components), block, mask)
    paths, steps = adversary.starts * blocks, adversary.steps
    parts = {
        "scores": Part("attributions", blocks, _operations(seen.score, *shape)),
        "outputs": Part(
            "the network itself", blocks, _operations(distance.outputs, target, block.x)
        ),
        "masks": Part("own and other masks", MASKS * blocks, own),
        "random": Part("random masks", 2 * draws * blocks, own),
        "weights": Part(
            "sites and sums",
            (WEIGHTS + len(target.sites)) * blocks,
            _operations(distance.of_weights, kind, target, target.weights, block),
        ),
        "ascent": Part("adversary", paths * steps[-1], step),
        "ascended": Part("adversary", paths * len(steps), own),
        "shared": Part(
            "adversary of one mask for all",
            paths * (steps[-1] + 1),
            _of_shared(kind, target, components, block, mask),
        ),
    }
    if baselines:
        parts |= _of_baselines(
            objective, target, kind, block, blocks, attacked, draws, adversary, baselines
        )
    return Cost(examples, blocks, len(block.counts), attacked, parts)


def _of_baselines(
    objective, target, kind, block, blocks, attacked, draws, adversary, baselines
) -> dict[str, Part]:
    terms = jax.eval_shape(lambda: equal_rank.terms_of_baselines(baselines, target))
    scores = jax.eval_shape(
        lambda *a: equal_rank.term_scores(objective, *a), target, terms, block.x
    )
    found = {
        "baseline scores": Part(
            "baselines",
            blocks,
            _operations(equal_rank.term_scores, objective, target, terms, block.x),
        )
    }
    costs = {}
    for name in terms:
        owner = jax.eval_shape(lambda n=name: equal_rank.owners(terms[n]))
        costs[name] = _of_parts(kind, target, Parts(terms[name], owner), block, scores[name])
    paths = adversary.starts * attacked
    for name in baselines:
        own, step = costs[equal_rank.KINDS[name]]
        found |= {
            name: Part("baselines", (1 + draws) * blocks + paths, own),
            f"{name} ascent": Part("baselines", paths * adversary.steps[0], step),
        }
    return found


def _scores(objective, target, components, block) -> jax.ShapeDtypeStruct:
    found = jax.eval_shape(lambda *a: seen.score(objective, *a), target, components, block.x)
    return jax.ShapeDtypeStruct(found.shape, jnp.float32)


def _of_parts(kind, target, parts, block, mask) -> tuple[float, float]:
    """Operations of a masked pass through a block, and of a step of the adversary."""
    own = _operations(distance.of_mask, kind, target, parts, block, mask)
    best = jax.ShapeDtypeStruct(mask.shape[:1], jnp.float32)
    chosen = jax.ShapeDtypeStruct(mask.shape, bool)
    plain = block.without_labels()
    ascent = _operations(ascend, kind, target, parts, plain, chosen, mask, best, np.int32(1), 0.1)
    return own, ascent - own  # a loop's body is counted once; one more pass follows it


def _of_shared(kind, target, components, block, mask) -> float:
    chosen = jax.ShapeDtypeStruct(mask.shape, bool)
    r = jax.ShapeDtypeStruct((num_components(components),), jnp.float32)
    plain = block.without_labels()
    return _operations(shared_gradient, kind, target, components, plain, chosen, r)


def _operations(program: Any, *arguments: Any) -> float:
    return (program.lower(*arguments).cost_analysis() or {}).get("flops", float("nan"))
