"""Settings for reliable training across seeds, without knowing the number of mechanisms.

The paper's settings, one per experiment, are in configs/. `ROBUST` is the same for every network:
losses relative to those without components, a learning rate relative to the weights, rounds of
refinement in the first part of the training, and a simplicity coefficient that falls to zero in the
rest, so that components reach their full norm. What is left to choose is k, and C (about twice the
expected number of mechanisms).

`LOGITS` is for networks that give logits at every position, such as language models, where
components are chosen for every position.

Letters: B batch, T positions, C components.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from apd_jax.config_fields.values import KINDS, number
from apd_jax.objective.coefficients import Coefficients, Routes
from apd_jax.objective.objective import Objective
from apd_jax.objective.partial import PartialMasks
from apd_jax.training.config import Settings
from apd_jax.training.refine.rules import Rules
from apd_jax.training.schedules import Schedules

SUFFIX = "-robust"  # ends the name of the variant of a config with these settings

ROBUST = Settings(
    objective=Objective(Coefficients(faithfulness=1.0, minimality=1.0, simplicity=6.0)),
    steps=8000,
    batch_size=512,
    learning_rate=0.1,
    warmup_fraction=0.05,
    relative_rate=True,
    relative_losses=True,
    schedules=Schedules(simplicity="0:1 0.6:1 1:0"),
    refine=Rules(every=0.1, until=0.6),
)

# Measured on a byte-level transformer, docs/language-models.md. There is no simplicity loss, which
# keeps the KL divergence high, and no round of refinement: the rank bounds the size of components.
# A small partial loss at first keeps more components alive.
LOGITS = Settings(
    objective=Objective(
        Coefficients(faithfulness=120.0, minimality=1.0, partial=2.0),
        selection="sample",
        per_position=True,
        minimality_loss="kl",
        masks=PartialMasks(adversary_share=0.1875, adversary_steps=6, adversary_step_size=0.2),
        routes=Routes(attribution_mode="sketch", num_probes=8, evaluation_probes=32),
    ),
    steps=14_000,
    batch_size=16,
    learning_rate=0.15,
    warmup_fraction=0.05,
    start="singular",
    relative_rate=True,
    eigenbasis=True,
    relative_losses=True,
    schedules=Schedules(partial="0:0.25 0.3:0.25 0.7:1 1:1"),
)
_FEW_OUTPUTS = 32  # up to which exact attributions are as cheap as a sketch that can be trusted


def base(options: Mapping[str, Any], *, logits: bool = False) -> Settings:
    """The settings that options of `decompose` are added to.

    `LOGITS` if a KL divergence is minimised and components are chosen for every position, because
    the options say so or because the network is a language model and they say nothing; else
    `ROBUST`. Where components are chosen for positions by a sketch, k is the same at every position
    and there are as many random directions as in `LOGITS`: the noise of a few directions decides
    which positions a batch-wide rule serves. If k is not whole, selection is batch-wide, since
    `"sample"` needs a whole k.

    Args:
      options: keywords of `decompose`.
      logits: whether the network gives logits of the tokens that it reads.
    """
    k = number(options.get("topk"))
    unsaid = not {"per_position", "minimality_loss"} & options.keys() and k is not None
    positions = options.get("per_position") or (logits and unsaid)
    if positions and (options.get("minimality_loss") == "kl" or (logits and unsaid)):
        settings = LOGITS
    elif positions and options.get("attribution_mode") == "sketch":
        objective = dataclasses.replace(
            ROBUST.objective, selection=LOGITS.objective.selection, routes=LOGITS.objective.routes
        )
        settings = dataclasses.replace(ROBUST, objective=objective)
    else:
        return ROBUST
    if KINDS[float](k) and float(k).is_integer():
        return settings
    batchwise = dataclasses.replace(settings.objective, selection="batch")
    return dataclasses.replace(settings, objective=batchwise)


def targeted(settings: Settings) -> Settings:
    """The settings of a targeted decomposition, with a remainder beside the components.

    Components need not add up to the weights, so that there is no faithfulness loss. The remainder
    is an inactive component on the data, and always active on the other data. There are no rounds
    of refinement, since they use only the data.
    """
    objective = settings.objective
    weights = dataclasses.replace(objective.coefficients, faithfulness=0.0, other=1.0)
    if not weights.partial:
        weights = dataclasses.replace(weights, partial=0.5)
    masks = dataclasses.replace(objective.masks, remainder=True)
    objective = dataclasses.replace(objective, coefficients=weights, masks=masks)
    return dataclasses.replace(settings, objective=objective, refine=Rules(every=0))


def with_exact_scores(settings: Settings, shape: tuple[int, ...]) -> Settings:
    """Settings with exact attributions in place of a sketch if there are few outputs.

    Args:
      settings: the settings.
      shape: (T, ..., O), shape of an example's output.
    """
    objective = settings.objective
    if objective.routes.attribution_mode != "sketch" or math.prod(shape) > _FEW_OUTPUTS:
        return settings
    routes = dataclasses.replace(objective.routes, attribution_mode="auto")
    return dataclasses.replace(settings, objective=dataclasses.replace(objective, routes=routes))
