"""Lines of the baselines of equal size, block by block.

Letters: B examples of a block, T positions, Q terms.
"""

import dataclasses

import jax
import numpy as np

from apd_jax.evaluation.evidence import equal_rank, rows
from apd_jax.evaluation.evidence.equal_rank import Baseline, SizeToMatch
from apd_jax.evaluation.evidence.rows import Examples
from apd_jax.evaluation.evidence.run import Run

_MOST_ENTRIES = 4_000_000  # of the masks of terms that are in use at a time


class Against:
    """The baselines of one measurement, which share the attributions of their terms."""

    def __init__(self, run: Run, size: SizeToMatch):
        """Make the terms; bundles are made from the first block with a row that they can use.

        Args:
          run: the measurement.
          size: what they have to match.
        """
        self._run, self._size = run, size
        self._terms = equal_rank.terms_of_baselines(run.baselines, run.target)
        self._made: list[Baseline] = []
        self._final = False  # whether they were made from such a block
        self._adversary = dataclasses.replace(run.adversary, steps=run.adversary.steps[:1])
        self._piece = 0

    def add(self, place: int, block: Examples) -> None:
        """Add a block to the lines of every baseline.

        Args:
          place: number of the block.
          block: the block, with the target's outputs.
        """
        if not self._run.baselines:
            return
        run, block = self._run, block.without_labels()
        found = equal_rank.term_scores(run.objective, run.target, self._terms, block.x)
        scores = {kind: np.asarray(one) for kind, one in found.items()}
        run.advance("baseline scores")
        if not self._final:
            self._made = [self._make(name, scores, block) for name in run.baselines]
            self._final = all(equal_rank.usable_rows(s, block).any() for s in scores.values())
        for made in self._made:
            self._lines(made, place, block, made.choose(scores[made.kind], block))

    def _make(self, name: str, scores: dict[str, np.ndarray], block: Examples) -> Baseline:
        kind = equal_rank.KINDS[name]
        return equal_rank.make(name, self._terms[kind], scores[kind], block, self._size)

    def _lines(self, made: Baseline, place: int, block: Examples, mask: np.ndarray) -> None:
        run, name = self._run, made.name
        assert run.cost is not None
        for piece, here, run.share in rows.pieces(block, mask, _MOST_ENTRIES):
            key, self._piece = jax.random.fold_in(run.key, self._piece), self._piece + 1
            run.measure(f"{name}_own", piece, here, made.parts, part=name)
            again, draw = jax.random.fold_in(key, 4), jax.random.uniform
            run.random(f"{name}_random", piece, here, again, made.parts, draw, part=name)
            if place < run.cost.attacked:
                run.attack(
                    f"{name}_adversarial",
                    piece,
                    here,
                    jax.random.fold_in(key, 3),
                    made.parts,
                    self._adversary,
                    ascent=f"{name} ascent",
                    ascended=name,
                )
        run.share = 1.0
