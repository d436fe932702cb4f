"""The evidence of every seed of a run.

Letters: S seeds side by side.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from apd_jax import randomness
from apd_jax.decomposition.result import Decomposition
from apd_jax.evaluation.evidence import Evidence
from apd_jax.report import evidence_section
from apd_jax.run.setup import Setup
from apd_jax.runtime import memory, preemption
from apd_jax.runtime.outcome import Stopped

PREFIX = evidence_section.PREFIX
NOT_MEASURED = "not measured"


class SeedEvidence(NamedTuple):
    """The evidence of S seeds.

    Attributes:
      found: one entry per seed, None where it could not be measured.
      failures: sentences on the seeds without evidence.
    """

    found: list[Evidence | None]
    failures: list[str]

    def numbers(self) -> list[dict[str, float]]:
        """The numbers of every seed for results.json, `{"evidence_<name>": value}`.

        All seeds have the same names: NaN stands for what could not be measured, which is null in
        the file. Empty without any evidence.
        """
        rows = [{} if one is None else one.to_dict(PREFIX) for one in self.found]
        names = dict.fromkeys(name for row in rows for name in row)
        return [{name: row.get(name, math.nan) for name in names} for row in rows]

    def summary(self) -> dict[str, float]:
        """Mean and standard deviation of every number over the seeds that were measured.

        `evidence_seeds` is the number of these seeds. Empty where no evidence was asked for.
        """
        measured = [one.to_dict(PREFIX) for one in self.found if one is not None]
        if not measured and not self.failures:
            return {}
        found: dict[str, float] = {f"{PREFIX}seeds": len(measured)}
        for name in dict.fromkeys(name for row in measured for name in row):
            values = np.array([row[name] for row in measured if name in row])
            found |= {f"{name}_mean": float(values.mean()), f"{name}_std": float(values.std())}
        return found

    def verdicts(self, seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
        """How many verdicts of each seed pass, and the names of those that fail, for results.json.

        A seed whose evidence could not be measured passes none, and its only failure is
        `NOT_MEASURED`. Empty where no evidence was asked for.

        Args:
          seeds: the S seeds.
        """
        if not self.failures and None in self.found:
            return {}
        return {
            str(seed): {"passed": 0, "failed": [NOT_MEASURED]}
            if one is None
            else {
                "passed": sum(verdict.passed for verdict in one.verdicts),
                "failed": [verdict.name for verdict in one.verdicts if not verdict.passed],
            }
            for seed, one in zip(seeds, self.found, strict=True)
        }


def measure(setup: Setup, decompositions: Sequence[Decomposition]) -> SeedEvidence:
    """Measure the evidence of every seed, on inputs of its own.

    The programs are compiled for the first seed and serve the others. A failure is logged and
    costs the evidence of that seed alone: the decomposition is done.
    """
    count = setup.config.evidence_samples
    if not count:
        return SeedEvidence([None] * len(decompositions), [])
    found: list[Evidence | None] = []
    failures = []
    for seed, decomposition in zip(setup.seeds.tolist(), decompositions, strict=True):
        preemption.stop_if_asked()
        memory.give_back()
        try:
            key = randomness.stream(seed, "evidence inputs")
            x, labels = setup.study.evidence_examples(setup.task, key, count)
            evidence = decomposition.evidence(
                x,
                labels,
                adversary_steps=setup.config.evidence_steps,
                draws=evidence_section.DRAWS,
                limits=setup.config.evidence_limits,
            )
            found.append(evidence)
        except Stopped:
            raise
        except Exception as error:
            logging.exception("The evidence of seed %d could not be measured.", seed)
            failures.append(f"The evidence of seed {seed} could not be measured: {error}")
            found.append(None)
    return SeedEvidence(found, failures)
