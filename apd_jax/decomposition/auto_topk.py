"""The search for k, by short trainings (pilots) and the curves of their masked error over k.

If k is smaller than the number of active mechanisms, the error with the active components alone
is large. If k is larger, the additional active components hold pieces that matter little, or
mechanisms are spread over several components. So k is doubled from one short training to the next,
until the error is below a fifth of the error without components and a larger k is not needed: it
lowers the error by no more than 3 %, or the training's own error curve shows that a clearly smaller
k costs only 0.5 %. Then that smaller k is tried. Only the k that is found enters the decomposition
itself, which starts from scratch.

Letters: N examples, C components.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
from absl import logging

from apd_jax import sites
from apd_jax.decomposition.result import Decomposition
from apd_jax.errors import UserError
from apd_jax.evaluation import seen
from apd_jax.runtime import loop
from apd_jax.runtime.outcome import Stopped
from apd_jax.runtime.workdir import Workdir, WorkdirError, atomic_write_text
from apd_jax.sites import PyTree
from apd_jax.training.config import Settings

AUTO = "auto"
FILE = "pilots.json"
_FIRST = 0.25  # k of the first pilot: steps with a small k are the cheapest
_MOST = 0.5  # largest k as a fraction of C; a decomposition that needs more explains little
_SHORTER = 4  # a pilot has this fraction of the steps of the decomposition
# Errors are in units of the error without components. Pilots are too short for a smaller difference
# between two of them to mean anything; errors of one pilot under several k compare more precisely.
_BETTER = 0.03
_LARGE = 0.2  # with twenty equal mechanisms, one more active component lowers the error only a bit
_LITTLE = 0.005
_APART = 0.8  # ratio of two k above which a pilot with the other one tells nothing new
_FINENESS = 1.02  # ratio of the bounds where the bisection ends


class Pilot(TypedDict):
    """A short training.

    Attributes:
      topk: k of the training.
      error: its masked error, divided by the error without components.
      enough: the smallest k that nearly suffices for its components.
    """

    topk: float
    error: float
    enough: float


@dataclasses.dataclass
class Search:
    """The progress of a search.

    Attributes:
      pilots: the short trainings so far.
      topk: the k that was found; None during the search.
      directory: where the search is saved; None for nowhere.
    """

    pilots: list[Pilot] = dataclasses.field(default_factory=list)
    topk: float | None = None
    directory: pathlib.Path | None = None

    def keep(self) -> None:
        """Save the search, atomically."""
        if self.directory is not None:
            text = json.dumps({"pilots": self.pilots, "topk": self.topk}, indent=2)
            atomic_write_text(self.directory / FILE, text + "\n")


class Quiet(loop.Observer):
    """Passes on the stop requests of another observer, which receives no metrics or states."""

    def __init__(self, observer: loop.Observer):
        self._observer = observer

    def should_stop(self) -> bool:
        """Whether the other observer requests a stop."""
        return self._observer.should_stop()


def read(workdir: Workdir) -> Search:
    """Read the search that was started for the decomposition in this directory.

    Raises:
      WorkdirError: it can't be read, or is missing although there are checkpoints with its k.
    """
    path = workdir.path / FILE
    lost = f"put it back, or delete {workdir.path}"
    search = Search(directory=workdir.path)
    if path.exists():
        try:
            kept = json.loads(path.read_text())
            search.pilots = [
                Pilot(topk=float(p["topk"]), error=float(p["error"]), enough=float(p["enough"]))
                for p in kept["pilots"]
            ]
            search.topk = None if kept["topk"] is None else float(kept["topk"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise WorkdirError(f"{path} cannot be read ({error}): {lost}") from error
    if search.topk is None and workdir.checkpoints.exists():
        raise WorkdirError(f"{path} does not state the k of the checkpoints beside it: {lost}")
    return search


def shorter(settings: Settings, topk: float) -> Settings:
    """The settings of a short training with this k."""
    return settings.with_topk(topk, steps=max(settings.steps // _SHORTER, 1))


def check(settings: Settings) -> None:
    """Refuse settings for which there is no search for k."""
    objective = settings.objective
    scheduled = settings.schedules.topk
    if objective.selection != "batch" or scheduled != "constant" or objective.distil:
        raise UserError(
            f"topk='{AUTO}' finds a constant k of batch top-k over all components, got "
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
) -> float:
    """Find k by short trainings.

    Args:
      search: what was done before; it is resumed, and saved after every training.
      settings: settings of the decomposition.
      train: runs a short training with a given k.
      x: [N, ...] examples.
      stop: tells whether a stop is requested.

    Returns:
      k.

    Raises:
      Stopped: a stop was requested; its `decomposition` is the last short training.
      Exception, SystemExit: what `stop` raised, with the same `decomposition`.
      UserError: no short training explains the output, whatever its k.
    """
    bounds = first(settings), _MOST * settings.num_components
    count = sites.batch_size(x)
    if not settings.objective.per_position and bounds[0] * count < 1:
        raise UserError(
            f"topk='{AUTO}' starts with k = {bounds[0]:.3g}, and {count} examples are too few to "
            f"compare errors at it: give at least {math.ceil(1 / bounds[0])}, or topk as a number"
        )
    while search.topk is None:
        topk = following(search.pilots, *bounds)
        if topk is None:
            search.topk = found(search.pilots)
            search.keep()
            break
        try:
            short = train(topk)
            search.pilots.append(look(short, x))
            search.keep()
            logging.info(
                "Search for k: a short training with k = %.3g leaves %.3g of the error without "
                "components; k = %.3g suffices for its components",
                *search.pilots[-1].values(),
            )
            try:
                if stop():
                    raise Stopped(short.settings.steps, "the search for k")
            except (Exception, SystemExit) as error:  # also one of the observer, which is asked
                error.decomposition = short  # type: ignore[union-attr]
                raise
        except Stopped:
            logging.warning(
                "Stopped during the search for k: this is a short training, with k = %.3g.", topk
            )
            raise
    return search.topk


def first(settings: Settings) -> float:
    """k of the first training; large enough for one active component in a batch."""
    most = _MOST * settings.num_components
    return min(max(_FIRST, 1.5 / settings.batch_size), most)


def found(pilots: Sequence[Pilot]) -> float:
    """The k that suffices, from one or more short trainings.

    Raises:
      UserError: none of them explains the output.
    """
    best = _least_that_does(pilots)
    if best["error"] > _LARGE:
        tried = ", ".join(f"{p['error']:.2g} with k = {p['topk']:.3g}" for p in pilots)
        raise UserError(
            f"topk='{AUTO}' found no k: short trainings leave these fractions of the error without "
            f"components: {tried}. Use more components, more steps, or a smaller coefficient of "
            "simplicity, or give topk as a number"
        )
    return best["enough"]


def following(pilots: Sequence[Pilot], least: float, most: float) -> float | None:
    """k of the next training; None if there is nothing left to try.

    Args:
      pilots: the trainings so far.
      least: k of the first training.
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
    """The pilot with the smallest k among those nearly as good as the best one.

    While no pilot is good, nothing counts as nearly as good as the best.
    """
    least = min(pilot["error"] for pilot in pilots)
    allowed = least if least > _LARGE else least + _BETTER
    return min((p for p in pilots if p["error"] <= allowed), key=lambda pilot: pilot["topk"])


def look(decomposition: Decomposition, x: PyTree) -> Pilot:
    """Find the smallest k that nearly suffices for these components.

    With E(k) the masked error on N examples under batch top-k with k, and E(0) the error without
    components, it is the smallest k with `E(k) - E(topk) <= 0.005 (E(0) - E(topk))`, found by
    bisection, as E falls with k.
    """
    objective, size = decomposition.objective, decomposition.settings.batch_size
    target, components = decomposition.target, decomposition.components
    found = decomposition.see(x)

    def error(k: float) -> float:
        (point,) = seen.points([k], objective, target, components, x, size, found=found)
        return point.measured.error

    assert objective.topk is not None  # the search sets it
    topk = float(objective.topk)
    nothing, least = error(0.0), error(topk)
    if not np.isfinite([nothing, least]).all():
        raise UserError(
            f"topk='{AUTO}' compares errors, but the error without components is {nothing} and "
            f"the error with k = {topk:.3g} is {least}; give topk as a number"
        )
    allowed = least + _LITTLE * (nothing - least)
    low, high = min(1 / size, topk), topk
    while high > _FINENESS * low:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if error(middle) <= allowed else (middle, high)
    return Pilot(topk=topk, error=least / nothing if nothing else 0.0, enough=high)
