"""Warnings and notes that accompany the numbers of a summary.

Letters: R rows (examples, or positions of them), C components.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from apd_jax.evaluation.labels import num_ignored
from apd_jax.objective.objective import Objective
from apd_jax.training.config import Settings
from apd_jax.training.presets import LOGITS

ALWAYS = 0.95  # a component that is active on a larger share of the examples is always on
MOST = 0.5  # an active rank above this share of the network's is most of the network
INFINITE = (
    "Some labels are classes of probability 0, with a logit of −∞, so that the cross entropy is "
    "infinite. Check that the labels are those of the network's classes, or leave these out with a "
    "label of -1."
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that a reader of the numbers has to know.

    Attributes:
      kind: `"trivial"`: the decomposition says little about the network; `"empty site"`: a site's
        weights are all zero; `"scores"`: attributions are not finite; `"errors"`: single examples
        have none; `"labels"`: some were ignored, or have probability 0; `"baseline"`: one was
        omitted; `"settings"`: how components are chosen for positions; `"other"`: the error of a
        targeted decomposition on the other data.
      text: a sentence.
    """

    kind: Literal[
        "trivial", "empty site", "scores", "errors", "labels", "baseline", "settings", "other"
    ]
    text: str


def trivial(
    objective: Objective, share: np.ndarray, active_rank: float, whole: int
) -> list[Finding]:
    """Why a decomposition says little.

    Args:
      objective: the rule of the training.
      share: [C] share of the rows on which a component is active.
      active_rank: mean rank of what is active.
      whole: rank of the network.
    """
    if not objective.selects:
        return []
    counted = share[: len(share) - 1] if objective.distil else share
    always = np.flatnonzero(counted > ALWAYS).tolist()
    texts = []
    if always:
        what = f"component {always[0]} is" if len(always) == 1 else f"components {always} are"
        texts.append(
            f"Trivial: {what} active on more than {ALWAYS:.0%} of the examples, so that part of "
            "the network is not divided into mechanisms. Try components of lower rank, more of "
            "them, or a smaller topk."
        )
    if active_rank > MOST * whole:
        texts.append(
            f"Trivial: the components that are active on an example have rank {active_rank:.1f} on "
            f"average, out of the network's {whole}: most of the network. Try components of lower "
            "rank, a larger coefficient of simplicity, or a smaller topk."
        )
    return [Finding("trivial", text) for text in texts]


def empty(name: str) -> Finding:
    """A site holds nothing."""
    text = (
        f"All weights of the site {name} are zero (or below 1e-19, so that their squares are). "
        "What components have there does not count in ranks."
    )
    return Finding("empty site", text)


def omitted(name: str) -> Finding:
    """A baseline was not computed."""
    text = f"The baseline {name} was skipped because the network is too large for it."
    return Finding("baseline", text)


def not_finite(scores: np.ndarray) -> list[Finding]:
    """Attributions [R, C] that are NaN or infinite, if there are any."""
    count = int(np.sum(~np.isfinite(scores)))
    if not count:
        return []
    rows = int(np.sum(np.any(~np.isfinite(scores), axis=1)))
    text = (
        f"{count:,} attributions on {rows:,} of {len(scores):,} rows are NaN or infinite; the "
        "components are not switched on there. Check the inputs."
    )
    return [Finding("scores", text)]


def on_other_data(rows: Sequence[Any] | None) -> list[Finding]:
    """The error of a targeted decomposition on the other data.

    Args:
      rows: with the remainder and active components, and with the remainder alone; empty if the
        decomposition is not targeted, None if there are no such examples.
    """
    if rows is None:
        text = (
            "This is a targeted decomposition. Its error on the other data is unknown, since no "
            "such examples were given: call summary(x, other=...)."
        )
        return [Finding("other", text)]
    if not rows:
        return []
    active, alone = rows
    text = (
        "This is a targeted decomposition: components explain only its data. On the other data "
        f"the output error is {active.error:.3g} with the remainder and the active components, and "
        f"{alone.error:.3g} with the remainder alone."
    )
    return [Finding("other", text)]


def ignored(labels: Any) -> list[Finding]:
    """Labels that were ignored, if there are any."""
    count = 0 if labels is None else num_ignored(labels)
    if not count:
        return []
    total = np.size(np.asarray(labels))
    return [Finding("labels", f"{count:,} of {total:,} labels are negative and ignored.")]


def infinite(cross_entropies: Sequence[float | None]) -> list[Finding]:
    """That the cross entropy is infinite, if it is for some of the ways to run the network."""
    some = any(value is not None and math.isinf(value) for value in cross_entropies)
    return [Finding("labels", INFINITE)] if some else []


def on_positions(settings: Settings) -> list[Finding]:
    """How components are chosen for positions.

    Nothing if they are not, or if they are chosen by exact attributions and no KL is minimised.
    """
    objective = settings.objective
    sketched = objective.routes.attribution_mode == "sketch"
    if not objective.per_position or not (sketched or objective.minimality_loss == "kl"):
        return []
    text = "Components are chosen for every position"
    if objective.masks == LOGITS.objective.masks and settings.start == LOGITS.start:
        text += ", with the settings for logits at every position (presets.LOGITS)"
    if objective.selection == "gates":
        text += ", by learned gates"
    if not sketched:
        return [Finding("settings", f"{text}, by exact attributions.")]
    trained, count = (objective.routes.probes(training) for training in (True, False))
    in_training = "" if trained == count else f" ({trained} in training)"
    text += (
        f", by attributions that are estimated from {count} random directions{in_training}: the "
        f"squared ones have a relative standard error of about {math.sqrt(2 / count):.0%}."
    )
    return [Finding("settings", text)]
