"""The trainings of runs that share a compiled program, side by side in groups that fit the memory.

Letters: S seeds of each run.
"""

import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from absl import logging

from apd_jax.data import as_source
from apd_jax.run import experiment
from apd_jax.run.setup import Setup, requirements_of
from apd_jax.runtime import loop, session
from apd_jax.runtime.outcome import Diverged
from apd_jax.runtime.preemption import StopFlag
from apd_jax.runtime.stores import Directory, Several
from apd_jax.runtime.workdir import Workdir
from apd_jax.sites import Target
from apd_jax.training.side_by_side import Family, SideBySide
from apd_jax.training.trainer import Trainer

_SHARE = 0.5  # share of the memory that a group may take; the count may be a third too low


class _Run(NamedTuple):
    """A run of the family: its number among the runs, its training, and where it is kept."""

    number: int
    trainer: Trainer
    store: Directory


def train(
    family: Sequence[Setup],
    waiting: Sequence[tuple[Setup, Workdir]],
    donors: Iterable[pathlib.Path],
    flag: StopFlag,
    diverged: Callable[[int, str], None],
) -> None:
    """Train runs to their last step; a run that diverges does not stop the others.

    Args:
      family: the setups of all runs that the compiled program is to serve.
      waiting: setup and directory of each run that is to be trained; all have the same target.
      donors: directories of this target's training in other runs; the first that exists is copied.
      flag: requests a stop between chunks.
      diverged: receives the number, among those that wait, of a run that diverged, and the reason.
    """
    setup, workdir = waiting[0]
    donor = next((path for path in donors if path.exists()), None)
    if donor is not None:
        _copy(donor, workdir.target)
    try:
        targets, _ = experiment.train_targets(setup, workdir, flag)
    except Diverged as error:
        for index in range(len(waiting)):
            diverged(index, str(error))
        return
    for _, other in waiting[1:]:
        _copy(workdir.target, other.target)
    if setup.task.shuffled:
        targets = experiment.shuffle(targets, setup.seeds)
    program = Family(
        [each.settings for each in family], as_source(setup.task.inputs), loop.pick(targets, 0)
    )
    runs = [_open(i, each, place, targets) for i, (each, place) in enumerate(waiting)]
    for group in _groups(runs, setup):
        while group:
            broken = _train(group, program, setup, flag, diverged)
            group = [run for run in group if run.number not in broken]


def _open(index: int, setup: Setup, workdir: Workdir, targets: Target) -> _Run:
    trainer = experiment.make_trainer(setup, targets)
    keeping = experiment.keeping(setup.config)
    return _Run(index, trainer, Directory(workdir.path, trainer, "decomposition", keeping))


def _groups(runs: list[_Run], setup: Setup) -> list[list[_Run]]:
    """Group runs that are at the same step; groups are of similar size and fit the memory."""
    one = requirements_of(setup, compile=False)
    most = max(1, int(_SHARE * one.available / one.counted)) if one.available else len(runs)
    by_step: dict[int, list[_Run]] = {}
    for run in runs:
        with run.store:
            found = run.store.restore(run.trainer)
        by_step.setdefault(found.step if found else 0, []).append(run)
    by_step.pop(setup.settings.steps, None)  # these are done
    groups = []
    for step, same in sorted(by_step.items()):
        number = -(-len(same) // most)
        groups += [same[i::number] for i in range(number)]
        logging.info("%d runs from step %d in %d group(s)", len(same), step, number)
    return groups


def _train(
    group: list[_Run],
    program: Family,
    setup: Setup,
    flag: StopFlag,
    diverged: Callable[[int, str], None],
) -> set[int]:
    """Train a group; return the numbers of the runs that diverged, or of all if none did."""
    trainers = [run.trainer for run in group]
    store = Several([run.store for run in group], trainers)
    training = SideBySide(program, trainers, setup.config.mesh)
    keeping = experiment.keeping(setup.config)
    try:
        session.fit_in(store, training, name="decomposition", keeping=keeping, flag=flag)
    except Diverged as error:
        size = len(trainers[0].seeds)
        broken = {group[place // size].number for place in error.places}
        if not broken:
            raise
        for index in broken:
            diverged(index, str(error))
        return broken
    return {run.number for run in group}


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copy a directory completely or not at all; keep an existing copy."""
    if target.exists() or not source.exists():
        return
    aside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside)
    os.replace(aside, target)
