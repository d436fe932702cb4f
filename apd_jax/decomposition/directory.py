"""The directory of a decomposition: its ownership, and the files of a finished decomposition."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from absl import logging

from apd_jax import config_fields
from apd_jax.components import Components
from apd_jax.decomposition.result import Decomposition
from apd_jax.runtime import processes
from apd_jax.runtime.checkpoint import to_host
from apd_jax.runtime.checksum import fingerprint
from apd_jax.runtime.outcome import Stopped
from apd_jax.runtime.workdir import Workdir, atomic_write_bytes
from apd_jax.sites import PyTree, Target
from apd_jax.training.config import Settings

STARTED = "report.started"  # is there while a report is written
_WHAT_STARTED_IS = (
    b"This file is there while the report is written. If no call is under way, one has ended "
    b"while it wrote the report: delete this file to let the next call try again.\n"
)


def config_of(
    settings: Settings, target: Target, init: Components | None, **others: Any
) -> dict[str, Any]:
    """Everything that decides the numbers of a decomposition except its target, as JSON."""
    start = None if init is None else fingerprint(to_host(init))
    plain = config_fields.plain(config_fields.to_mapping(settings))
    return plain | others | {"init": start, "sites": list(target.sites)}


@contextlib.contextmanager
def hold(path: str | os.PathLike[str] | None, config: dict[str, Any]) -> Iterator[Workdir | None]:
    """Hold the directory of a decomposition, if it has one.

    Args:
      path: the directory, or None.
      config: config of the decomposition, see `config_of`.

    Raises:
      WorkdirError: it belongs to another decomposition, or can't be written to.
    """
    if path is None:
        yield None
        return
    with Workdir(path) as workdir:
        defaults = config_fields.plain(config_fields.to_mapping(Settings()))
        workdir.claim(config, free=("checkpoint_every",), defaults=defaults)
        yield workdir


def publish(
    workdir: Workdir,
    decomposition: Decomposition,
    examples: Callable[[], PyTree],
    *,
    trained_on: bool,
    gaps: Sequence[str] = (),
) -> None:
    """Write the components, then the report and its figures.

    If the report fails or is stopped (`preemption.watch`), this is logged, so that the
    decomposition is not lost. If an earlier call was killed while it wrote the report, as for lack
    of memory, this one writes none.

    Args:
      workdir: the directory.
      decomposition: the finished decomposition.
      examples: gives the inputs [N, ...] of the report.
      trained_on: whether the training may have seen these.
      gaps: sentences on metrics that are missing.
    """
    components, started = workdir.path / "components", workdir.path / STARTED
    decomposition.save(components)
    if processes.any_of(started.exists()):
        logging.warning(
            "An earlier call ended while writing the report, so none is written now: the "
            "components are in %s; call found.report(path, x) on the decomposition, or delete %s "
            "and rerun the call.",
            components,
            started,
        )
        return
    try:
        atomic_write_bytes(started, _WHAT_STARTED_IS)
        _write_report(workdir, decomposition, examples(), trained_on, gaps)
    except Stopped:
        logging.warning(
            "Stopped before the report was written. The components are in %s; call again to write "
            "the report.",
            components,
        )
    except Exception:
        logging.exception(
            "The report could not be written. The components are in %s; rerun the call to try the "
            "report again.",
            components,
        )
    finally:
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                started.unlink()


def _write_report(
    workdir: Workdir,
    decomposition: Decomposition,
    x: PyTree,
    trained_on: bool,
    gaps: Sequence[str],
) -> None:
    from apd_jax.report import decomposition_page  # matplotlib is slow to import

    workdir.figures.mkdir(exist_ok=True)
    panels = decomposition_page.write(
        decomposition, workdir.report, x, trained_on=trained_on, gaps=gaps
    )
    for panel in panels:
        atomic_write_bytes(workdir.figures / f"{panel.name}.png", panel.png)
