"""k from the curve of masked error over k, of short trainings.

With too few places for the active mechanisms the error with the active components alone is large.
With too many, spare places are filled with pieces that matter little, or mechanisms are spread over
many pieces. So short trainings have ever more places, twice as many each, until more are not
needed: the error falls by no more than 3 % of that of no component, or the curve of a training's
own error says that a good deal fewer leave no more than 0.5 % beside it. Then one of so few is
tried. Only the k that was found goes into the decomposition itself, which starts anew.

Letters: N examples, C components.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
from absl import logging

from apd_jax.components import num_components
from apd_jax.decomposition import Decomposition
from apd_jax.errors import UserError
from apd_jax.insight import seen
from apd_jax.runtime.workdir import WorkdirError, atomic_write_text
from apd_jax.settings import Settings
from apd_jax.sites import PyTree

AUTO = "auto"
FILE = "pilots.json"
_FIRST = 0.25  # trainings with few places are the short ones
_MOST = 0.5  # of all components; a decomposition that needs more on an example says little
_SHORTER = 4  # than the decomposition are the trainings that look for k
# In units of the error of no component. Short trainings are not so good that a smaller difference
# between two would say anything; pieces of one training are weighed more finely.
_BETTER = 0.03
_LITTLE = 0.005
_APART = 0.8  # nearer to one that was tried, another k says nothing new
_FINENESS = 1.02


class Pilot(TypedDict):
    """A short training.

    Attributes:
      topk: the k that it had.
      error: its masked error over that of no component.
      enough: the smallest k that nearly does with its components.
    """

    topk: float
    error: float
    enough: float


def shorter(settings: Settings, topk: float) -> Settings:
    """The settings of a short training with this k."""
    return dataclasses.replace(with_k(settings, topk), steps=max(settings.steps // _SHORTER, 1))


def with_k(settings: Settings, topk: float) -> Settings:
    """The settings with this k."""
    return dataclasses.replace(
        settings, objective=dataclasses.replace(settings.objective, topk=topk)
    )


def check(settings: Settings) -> None:
    """Refuse settings for which k can't be looked for."""
    objective = settings.objective
    scheduled = settings.schedules.topk
    if objective.selection != "batch" or scheduled != "constant" or objective.distil:
        raise UserError(
            f"topk='{AUTO}' looks for the one k of batch top-k among all components, got "
            f"selection={objective.selection!r}, schedules.topk={scheduled!r} and "
            f"distil={objective.distil}; give a number"
        )


def search(
    train: Callable[[float], Decomposition],
    x: PyTree,
    settings: Settings,
    pilots: list[Pilot],
    keep: Callable[[list[Pilot]], None],
) -> Decomposition | None:
    """Add short trainings to `pilots` until `found` knows the k to take.

    Args:
      train: a short training with a given k.
      x: [N, ...] examples.
      settings: of the decomposition.
      pilots: those that were made before, which may be none.
      keep: is told of all after every training.

    Returns:
      None, or a short training that was stopped.
    """
    bounds = first(settings), _MOST * settings.num_components
    while topk := following(pilots, *bounds):
        short = train(topk)
        if not short.history or short.history[-1]["step"] < short.settings.steps:
            return short
        pilots.append(look(short, x))
        keep(pilots)
        logging.info("topk %.3g leaves error %.3g; %.3g nearly does", *pilots[-1].values())
    return None


def first(settings: Settings) -> float:
    """k of the first training; at least one place in a batch."""
    most = _MOST * settings.num_components
    return min(max(_FIRST, 1.5 / settings.batch_size), most)


def found(pilots: Sequence[Pilot]) -> float:
    """The k that is enough, by trainings of which at least one is there."""
    return _least_that_does(pilots)["enough"]


def following(pilots: Sequence[Pilot], least: float, most: float) -> float | None:
    """k of the next training; None if there is nothing left to try.

    Args:
      pilots: the trainings so far.
      least: k of the first.
      most: the largest k to try.
    """
    if not pilots:
        return least
    best = _least_that_does(pilots)
    needed = best["enough"] > _APART * best["topk"]
    if needed and best["topk"] == max(pilot["topk"] for pilot in pilots) < most:
        return min(2 * best["topk"], most)
    too_few = max((p["topk"] for p in pilots if p["topk"] < best["topk"]), default=0.0)
    return best["enough"] if not needed and best["enough"] > too_few / _APART else None


def _least_that_does(pilots: Sequence[Pilot]) -> Pilot:
    allowed = min(pilot["error"] for pilot in pilots) + _BETTER
    return min((p for p in pilots if p["error"] <= allowed), key=lambda pilot: pilot["topk"])


def look(decomposition: Decomposition, x: PyTree) -> Pilot:
    """The smallest k that nearly does with these components.

    With E(k) the masked error on N examples under batch top-k with k, and E(0) that of no
    component, it is the smallest one with `E(k) - E(topk) <= 0.005 (E(0) - E(topk))`, by bisection:
    the curve falls.
    """
    objective, size = decomposition.objective, decomposition.settings.batch_size
    target, components = decomposition.target, decomposition.components
    found = decomposition.see(x)

    def error(k: float) -> float:
        outputs = seen.outputs_at(k, target, components, x, found, size)[1]
        return seen.distance(objective, outputs, found.outputs)

    topk = float(objective.topk or num_components(components))
    nothing, least = error(0.0), error(topk)
    allowed = least + _LITTLE * (nothing - least)
    low, high = min(1 / size, topk), topk
    while high > _FINENESS * low:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if error(middle) <= allowed else (middle, high)
    return Pilot(topk=topk, error=least / nothing if nothing else 0.0, enough=high)


def read(directory: pathlib.Path) -> list[Pilot]:
    """The short trainings that were made for a decomposition in this directory.

    Raises:
      WorkdirError: they can't be read.
    """
    path = directory / FILE
    if not path.exists():
        return []
    try:
        return [Pilot(**pilot) for pilot in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise WorkdirError(f"{path} cannot be read ({error}): delete it") from error


def write(directory: pathlib.Path, pilots: list[Pilot]) -> None:
    """Keep them, whole or not at all."""
    atomic_write_text(directory / FILE, json.dumps(pilots, indent=2) + "\n")
