"""k from the curve of masked error over k, of short trainings.

With too few places for the active mechanisms the error with the active components alone is large.
With too many, spare places are filled with pieces that matter little, or mechanisms are spread over
many pieces. So short trainings have ever more places, twice as many each, until the error is below
a fifth of that of no component and more places are not needed: they lower it by no more than 3 %,
or the curve of a training's own error says that a good deal fewer leave only 0.5 % more. Then one
of so few is tried. Only the k that was found goes into the decomposition itself, which starts anew.

Letters: N examples, C components.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
from absl import logging

from apd_jax.decomposition.result import Decomposition
from apd_jax.errors import UserError
from apd_jax.evaluation import seen
from apd_jax.runtime.workdir import Workdir, WorkdirError, atomic_write_text
from apd_jax.sites import PyTree
from apd_jax.training.config import Settings

AUTO = "auto"
FILE = "pilots.json"
_FIRST = 0.25  # trainings with few places are the short ones
_MOST = 0.5  # of all components; a decomposition that needs more on an example says little
_SHORTER = 4  # than the decomposition are the trainings that look for k
# In units of the error of no component. Short trainings are not so good that a smaller difference
# between two would say anything; pieces of one training are weighed more finely.
_BETTER = 0.03
_LARGE = 0.2  # of twenty equal mechanisms, one place more takes away little, and is needed
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


@dataclasses.dataclass
class Search:
    """How far a search is.

    Attributes:
      pilots: the short trainings so far.
      topk: the k to take; None while it is looked for.
      directory: where this is kept, if anywhere.
    """

    pilots: list[Pilot] = dataclasses.field(default_factory=list)
    topk: float | None = None
    directory: pathlib.Path | None = None

    def keep(self) -> None:
        """Write it, whole or not at all."""
        if self.directory is not None:
            text = json.dumps({"pilots": self.pilots, "topk": self.topk}, indent=2)
            atomic_write_text(self.directory / FILE, text + "\n")


def read(workdir: Workdir) -> Search:
    """The search that was begun for the decomposition in this directory.

    Raises:
      WorkdirError: it can't be read, or is missing though steps were made with what it found.
    """
    path = workdir.path / FILE
    lost = f"put it back, or delete {workdir.path}"
    search = Search(directory=workdir.path)
    if path.exists():
        try:
            kept = json.loads(path.read_text())
            search.pilots = [
                Pilot(**{name: float(pilot[name]) for name in Pilot.__annotations__})
                for pilot in kept["pilots"]
            ]
            search.topk = None if kept["topk"] is None else float(kept["topk"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise WorkdirError(f"{path} cannot be read ({error}): {lost}") from error
    if search.topk is None and workdir.checkpoints.exists():
        raise WorkdirError(f"{path} does not say which k the checkpoints beside it are of: {lost}")
    return search


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
    shorter(settings, first(settings))


def find(
    search: Search,
    settings: Settings,
    train: Callable[[float], Decomposition],
    x: PyTree,
    stop: Callable[[], bool],
) -> Decomposition | None:
    """Make short trainings until the k to take is known.

    Args:
      search: what was done before; goes on there, and is kept after every training.
      settings: of the decomposition.
      train: a short training with a given k.
      x: [N, ...] examples.
      stop: whether to stop.

    Returns:
      None, or a short training that was stopped or is the last before a stop.

    Raises:
      UserError: with no k does a short training explain the output.
    """
    bounds = first(settings), _MOST * settings.num_components
    while search.topk is None:
        topk = following(search.pilots, *bounds)
        if topk is None:
            search.topk = found(search.pilots)
            search.keep()
            return None
        short = train(topk)
        whole = bool(short.history) and short.history[-1]["step"] == short.settings.steps
        if whole:
            search.pilots.append(look(short, x))
            search.keep()
            logging.info("topk %.3g leaves error %.3g; %.3g does", *search.pilots[-1].values())
        if not whole or stop():
            logging.warning(
                "Stopped while k was looked for: this is a short training, with k = %.3g.", topk
            )
            return short
    return None


def first(settings: Settings) -> float:
    """k of the first training; at least one place in a batch."""
    most = _MOST * settings.num_components
    return min(max(_FIRST, 1.5 / settings.batch_size), most)


def found(pilots: Sequence[Pilot]) -> float:
    """The k that is enough, by trainings of which at least one is there.

    Raises:
      UserError: none explains the output.
    """
    best = _least_that_does(pilots)
    if best["error"] > _LARGE:
        tried = ", ".join(f"{p['error']:.2g} with k = {p['topk']:.3g}" for p in pilots)
        raise UserError(
            f"topk='{AUTO}' found no k: of the error of no component short trainings leave "
            f"{tried}. Give more components, more steps, a smaller coefficient of simplicity, or "
            "topk as a number"
        )
    return best["enough"]


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
    needed = best["enough"] > _APART * best["topk"] or best["error"] > _LARGE
    if needed and best["topk"] == max(pilot["topk"] for pilot in pilots) < most:
        return min(2 * best["topk"], most)
    too_few = max((p["topk"] for p in pilots if p["topk"] < best["topk"]), default=0.0)
    return best["enough"] if not needed and best["enough"] > too_few / _APART else None


def _least_that_does(pilots: Sequence[Pilot]) -> Pilot:
    """The one of least k that is hardly worse than the best; while none is good, the best."""
    least = min(pilot["error"] for pilot in pilots)
    allowed = least if least > _LARGE else least + _BETTER
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

    topk = float(objective.topk)
    nothing, least = error(0.0), error(topk)
    if not np.isfinite([nothing, least]).all():
        raise UserError(
            f"topk='{AUTO}' compares errors, and that of no component is {nothing}, that with "
            f"k = {topk:.3g} {least}; give a number"
        )
    allowed = least + _LITTLE * (nothing - least)
    low, high = min(1 / size, topk), topk
    while high > _FINENESS * low:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if error(middle) <= allowed else (middle, high)
    return Pilot(topk=topk, error=least / nothing if nothing else 0.0, enough=high)
