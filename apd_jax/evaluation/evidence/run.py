"""The state of one measurement, and how a line is added to it.

Letters: B examples of a block, T positions, C components.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.components import Components, num_components
from apd_jax.evaluation.evidence import distance, rows
from apd_jax.evaluation.evidence.adversary import Adversary, worst_per_row
from apd_jax.evaluation.evidence.cost import Cost
from apd_jax.evaluation.evidence.distance import Kind
from apd_jax.evaluation.evidence.parts import Parts
from apd_jax.evaluation.evidence.rows import Examples
from apd_jax.evaluation.evidence.tally import Tally
from apd_jax.objective.objective import Objective
from apd_jax.objective.partial import scaled
from apd_jax.runtime.preemption import stop_if_asked
from apd_jax.runtime.progress import Progress
from apd_jax.sites import Target


@dataclasses.dataclass
class Run:
    """What the lines of one decomposition share.

    Attributes:
      objective: the rule that chooses components.
      target: the network.
      components: `{site: Factors}`.
      kind: the distance.
      examples: all of them.
      block_size: B, about.
      adversary: settings of the search for the worst masks.
      draws: number of random masks per line.
      key: PRNG key for all random draws.
      baselines: names of the baselines that the network is not too large for.
      cost: work of the measurement, once it is known.
      progress: shows how much is done, if given.
      done: work done so far, in masked forward passes over a block.
      share: share of a block that a pass runs on.
      masks: the chosen masks of every block, packed, once they are known.
      tally: the lines.
    """

    objective: Objective
    target: Target
    components: Components
    kind: Kind
    examples: Examples
    block_size: int
    adversary: Adversary
    draws: int
    key: jax.Array
    baselines: tuple[str, ...] = ()
    cost: Cost | None = None
    progress: Progress | None = None
    done: float = 0.0
    share: float = 1.0
    masks: list[np.ndarray] = dataclasses.field(default_factory=list)
    tally: Tally = dataclasses.field(default_factory=Tally)

    @property
    def parts(self) -> Parts:
        """The components as weighted parts."""
        return Parts(self.components)

    def blocks(self) -> Iterator[Examples]:
        """Blocks of the examples, all of one shape."""
        return rows.blocks(self.examples, self.block_size)

    def masked_blocks(self) -> Iterator[tuple[Examples, np.ndarray]]:
        """Blocks with the masks that were chosen."""
        count = num_components(self.components)
        for block, mask in zip(self.blocks(), self.masks, strict=True):
            yield block, rows.unpacked(mask, count)

    def advance(self, part: str, runs: int = 1) -> None:
        """Count runs of a part of the cost, and stop here if asked to."""
        stop_if_asked()
        if self.cost is not None:
            self.done += runs * self.share * self.cost.weight(part)
        if self.progress is not None:
            self.progress.update(round(self.done))

    def measure(
        self,
        name: str,
        block: Examples,
        mask: np.ndarray,
        parts: Parts,
        *,
        groups: Any = None,
        part: str = "masks",
    ) -> None:
        """Add a block's distance under a mask to a line."""
        mask = np.asarray(mask, np.float32)
        self.tally.add(name, distance.of_mask(self.kind, self.target, parts, block, mask), groups)
        self.advance(part)

    def replaced(self, name: str, block: Examples, weights: dict[str, jax.Array]) -> None:
        """Add a block's distance with other matrices to a line."""
        self.tally.add(name, distance.of_weights(self.kind, self.target, weights, block))
        self.advance("weights")

    def random(
        self,
        name: str,
        block: Examples,
        mask: np.ndarray,
        key: jax.Array,
        parts: Parts,
        draw: Any,
        *,
        part: str = "random",
    ) -> None:
        """Add the mean over random masks to a line."""
        block, found = block.without_labels(), []
        for number in range(self.draws):
            r = draw(jax.random.fold_in(key, number), mask.shape)
            weights = scaled(jnp.asarray(mask), r)
            sums = distance.of_mask(self.kind, self.target, parts, block, weights)
            found.append(jax.device_get(sums))
            self.advance(part)
        mean = sum(sums.error for sums in found) / self.draws
        self.tally.add(name, found[0]._replace(error=mean))

    def attack(
        self,
        name: str,
        block: Examples,
        mask: np.ndarray,
        key: jax.Array,
        parts: Parts,
        adversary: Adversary,
        *,
        ascent: str = "ascent",
        ascended: str = "ascended",
    ) -> None:
        """Add the worst masks of every row to the lines of each number of steps."""

        def advance(steps: int) -> None:
            self.advance(ascent, steps)
            self.advance(ascended)

        found = worst_per_row(adversary, self.kind, self.target, parts, block, mask, key, advance)
        for steps, sums in found.items():
            self.tally.add(f"{name}_{steps}", sums)


def halves(key: jax.Array, shape: tuple[int, ...]) -> np.ndarray:
    """Each component on or off."""
    return (np.asarray(jax.random.uniform(key, shape)) < 0.5).astype(np.float32)
