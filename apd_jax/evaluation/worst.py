"""The examples that the active components explain worst, and how far they are from the others.

Letters: R rows (examples, or positions of them).
"""

import dataclasses

import numpy as np

from apd_jax.evaluation.findings import Finding
from apd_jax.evaluation.seen import Seen

COUNT = 5  # examples that are named
FAR = 10.0  # times the median error, above which an example is far from the others


@dataclasses.dataclass(frozen=True)
class WorstExample:
    """An example, or a position of one, and its error.

    Attributes:
      example: its number among the examples given.
      position: number of the position along each axis; empty where examples are explained whole.
      error: distance of the output from the target's, as the training measures it.
      times_median: the error in units of the median.
    """

    example: int
    position: tuple[int, ...]
    error: float
    times_median: float

    @property
    def place(self) -> str:
        """Numbers of example and position, `"12"` or `"12:3"`."""
        return ":".join(map(str, (self.example, *self.position)))


@dataclasses.dataclass(frozen=True)
class ErrorSpread:
    """How the errors of single examples (or positions) are spread.

    Attributes:
      worst: those of the largest error, largest first; none whose error is zero.
      median: median of the errors that are not zero; 0 if all are.
      share_far: share of the examples whose error is above ten times the median.
    """

    worst: tuple[WorstExample, ...]
    median: float
    share_far: float

    def sentence(self) -> str:
        """The worst examples in words; empty if no example has an error."""
        if not self.worst:
            return ""
        named = ", ".join(f"{w.place} ({w.times_median:.3g})" for w in self.worst)
        return (
            "Explained worst (number of the example, or example:position, with its error in units "
            f"of the median, {self.median:.3g}): {named}. {self.share_far:.2%} of all errors are "
            f"above {FAR:g} times the median."
        )


def spread(found: Seen) -> ErrorSpread | None:
    """The worst examples of those that were seen; None where single examples have no error."""
    if found.errors is None:
        return None
    errors = np.where(np.isfinite(found.errors), found.errors, np.inf).astype(np.float64)
    if not errors.any():
        return ErrorSpread((), 0.0, 0.0)
    median = float(np.median(errors[errors > 0]))
    rows = np.argsort(-errors, kind="stable")[:COUNT]
    rows = rows[errors[rows] > 0]
    with np.errstate(invalid="ignore"):  # infinite errors have no ratio to an infinite median
        times = errors[rows] / median
    worst = tuple(
        WorstExample(example, tuple(position), error, ratio)
        for (example, *position), error, ratio in zip(
            np.stack(found.places(rows), axis=1).tolist(),
            errors[rows].tolist(),
            times.tolist(),
            strict=True,
        )
    )
    return ErrorSpread(worst, median, float(np.mean(errors > FAR * median)))


def untold(found: Seen) -> list[Finding]:
    """That single examples have no error, if so."""
    if found.errors is not None:
        return []
    text = (
        "The worst explained examples are not listed, because the minimality_loss has no finite "
        "value for a single example."
    )
    return [Finding("errors", text)]
