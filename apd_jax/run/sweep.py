"""A sweep: an experiment at every point of a grid; runs that can share a program run side by side.

Every point has an ordinary directory of a run.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from apd_jax import config_fields
from apd_jax.errors import UserError, about
from apd_jax.programs.jax_settings import own_settings
from apd_jax.report import sweep_page, words
from apd_jax.run import experiment, family
from apd_jax.run.config import Config
from apd_jax.run.grid import Grid, points
from apd_jax.run.setup import Setup, check, read_setup
from apd_jax.runtime.preemption import StopFlag
from apd_jax.runtime.versions import machine, versions
from apd_jax.runtime.workdir import Workdir, atomic_write_text
from apd_jax.training.side_by_side import shared

_FILE = "sweep.json"


@dataclasses.dataclass
class _Member:
    """A run of a sweep.

    Attributes:
      name: name of its directory.
      values: the values of the swept fields.
      config: its config, and `setup` the checked one.
      path: its directory.
      reason: why it diverged; empty if it didn't.
    """

    name: str
    values: dict[str, Any]
    config: ml_collections.ConfigDict
    setup: Setup
    path: pathlib.Path
    reason: str = ""

    @property
    def waits(self) -> bool:
        """Whether it is to be run: it did not diverge, and its report, written last, is missing."""
        files = ("results.json", "report.html")
        return not self.reason and not all((self.path / name).exists() for name in files)

    def row(self) -> dict[str, Any]:
        """Its entry in sweep.json."""
        state = "diverged" if self.reason else "waiting" if self.waits else "done"
        row = {"name": self.name, "values": self.values, "state": state, "reason": self.reason}
        done = json.loads((self.path / "results.json").read_text()) if state == "done" else {}
        return row | {"summary": done.get("summary", {})}

    def command(self, arguments: Sequence[str]) -> str:
        """The ordinary command that resumes this run."""
        flags = [f"--config.{name}={value}" for name, value in self.values.items()]
        words = ["python", "-m", "apd_jax.main", *arguments, f"--config.seeds={self.config.seeds}"]
        return shlex.join([*words, *flags, f"--workdir={self.path}"])


@own_settings()
def run(
    config: ml_collections.ConfigDict,
    grid: Grid,
    workdir_path: str | os.PathLike[str],
    *,
    arguments: Sequence[str] = (),
    command: str = "",
    flag: StopFlag | None = None,
) -> dict[str, Any]:
    """Run an experiment at every point of a grid, or resume the sweep.

    Args:
      config: the experiment; every run has its fields, except for the swept ones.
      grid: the values of the swept fields, see `grid.read_grid`.
      workdir_path: directory of the sweep, in which every run has a directory.
      arguments: command-line arguments that give the config, for the commands in the reports.
      command: command line of the sweep, for its report.
      flag: requests a stop between chunks.

    Returns:
      The content of sweep.json.

    Raises:
      UserError: a value or a network that is refused, or a directory of another sweep; before any
        training.
      Stopped: a stop was requested; the work so far is saved.
      CheckpointError, OSError: a file cannot be read or written.
    """
    flag, base = flag or StopFlag(), read_setup(config)
    with Workdir(workdir_path) as workdir:
        sweep = _Sweep(base, grid, workdir, _members(config, grid, workdir.path))
        families = sweep.families()
        for members in families:
            check(members[0].setup)
        workdir.claim(
            base.config.flags() | {"grid": {name: list(values) for name, values in grid.items()}},
            free=config_fields.free_names(base.config),
            defaults=Config(target=base.study.task).flags(),
        )
        sweep.read_diverged()
        for members in families:
            sweep.train(members, flag)
            for member in filter(lambda member: member.waits, members):
                own = member.command(arguments)
                experiment.run(member.config, member.path, command=own, flag=flag)
                sweep.write()
        results = sweep.write()
        title = words.control(base.study.title(base.config.variant), results["config"])
        sentences = dict(config_fields.sentences(base.config))
        page = sweep_page.render(title, results, base.study.measures, sentences, command)
        atomic_write_text(workdir.report, page)
        return results


def _members(config: ml_collections.ConfigDict, grid: Grid, path: pathlib.Path) -> list[_Member]:
    """The run of every point of a grid, its fields checked."""
    if jax.process_count() > 1:
        raise UserError(
            f"a sweep runs in one process, got {jax.process_count()}: start a sweep of a part of "
            "the grid in each"
        )
    if config.wandb.project:
        raise UserError(
            f"wandb.project must be unset in a sweep, got {config.wandb.project!r}: a process logs "
            "one run to Weights & Biases, and a sweep has several"
        )
    found = []
    for name, values in points(grid):
        own = config.copy_and_resolve_references()
        own.update_from_flattened_dict(values)
        with about(name):
            found.append(_Member(name, values, own, read_setup(own), path / name))
    return found


@dataclasses.dataclass(frozen=True)
class _Sweep:
    """A sweep that is running."""

    base: Setup
    grid: Grid
    workdir: Workdir
    members: list[_Member]

    def families(self) -> list[list[_Member]]:
        """Members that can share a compiled program, together."""
        found: dict[Config, list[_Member]] = {}
        for member in self.members:
            config = member.setup.config
            key = dataclasses.replace(config, settings=shared(config.settings))
            found.setdefault(key, []).append(member)
        return list(found.values())

    def train(self, members: list[_Member], flag: StopFlag) -> None:
        """Train the runs of a family that wait."""
        waiting = [member for member in members if member.waits]
        if not waiting:
            return

        def diverged(index: int, reason: str) -> None:
            waiting[index].reason = reason
            self.write()

        task, seeds = waiting[0].setup.task, waiting[0].config.seeds
        donors = [
            other.path / "target"
            for other in self.members
            if other.setup.task == task and other.config.seeds == seeds
        ]
        with contextlib.ExitStack() as stack:
            places = [stack.enter_context(Workdir(member.path)) for member in waiting]
            for place, member in zip(places, waiting, strict=True):
                experiment.claim(member.setup, place)
            pairs = [(member.setup, place) for member, place in zip(waiting, places, strict=True)]
            family.train([member.setup for member in members], pairs, donors, flag, diverged)

    def read_diverged(self) -> None:
        """Read which runs diverged before, unless their directories were deleted to try again."""
        path = self.workdir.path / _FILE
        rows = json.loads(path.read_text())["runs"] if path.exists() else []
        reasons = {row["name"]: row["reason"] for row in rows}
        for member in filter(lambda member: member.path.exists(), self.members):
            member.reason = reasons.get(member.name, "")

    def write(self) -> dict[str, Any]:
        """Write sweep.json."""
        results = {
            "name": self.base.config.name,
            "variant": self.base.config.variant,
            "config": self.base.config.flags(),
            "grid": {name: list(values) for name, values in self.grid.items()},
            "versions": versions(),
            "machine": machine(),
            "runs": [member.row() for member in self.members],
        }
        text = json.dumps(results, indent=2, allow_nan=False)
        atomic_write_text(self.workdir.path / _FILE, text + "\n")
        return results
