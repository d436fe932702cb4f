"""Several processes that compute one run together, by `jax.distributed`.

All processes run the same program: they divide the arrays of a training (`mesh`), and each repeats
what comes before and after it. Only process 0 writes files. A request to one process, such as to
stop, must reach all of them before any acts on it, since a collective waits for every process.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from apd_jax.errors import UserError

EXIT_RESUME = 75
"""Exit status of a run that was stopped and is saved: rerunning the command resumes it."""

# Seconds without a sign of life after which JAX ends the other processes.
_HEARTBEAT = 30
_LOST = (
    "another process of this run has ended, or cannot be reached: the others end too. Its own log "
    "says why; rerun the same command in all processes to resume from the last checkpoint."
)
# How collectives on CPU (gloo), GPU (NCCL) and JAX's coordination service report a lost process.
_SIGNS = (
    "gloo",
    "nccl",
    "connection closed by peer",
    "connection reset",
    "coordination service",
    "heartbeat",
    "socket closed",
    "broken pipe",
)


class ProcessLost(UserError):
    """Another process of the run has ended, or cannot be reached."""


def start(
    coordinator: str | None, num_processes: int | None, process_id: int | None, *, detect: bool
) -> None:
    """Join the other processes of a run. Call this before JAX computes anything.

    Args:
      coordinator: address HOST:PORT at which process 0 listens; None to let JAX find it.
      num_processes, process_id: number of processes, and which one this is.
      detect: whether to take what is not given from the cluster (SLURM, TPU pods, Open MPI).

    Raises:
      UserError: some of the first three are missing, or the processes do not find each other.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given) and not detect:
        return
    if missing and not detect:
        raise UserError(
            f"--{', --'.join(missing)} missing: give all of --coordinator=HOST:PORT, "
            "--num_processes and --process_id, or --distributed in a cluster that JAX knows"
        )
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # `preemption` catches the signals
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=_HEARTBEAT
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the processes of this run did not find each other: {reason}; check that all were "
            "started, with the same --coordinator and --num_processes"
        ) from error
    if jax.process_index():
        logging.set_verbosity(logging.WARNING)  # process 0 logs for all of them


def any_of(value: bool) -> bool:
    """Whether a value is true in any process of the run; all processes must call this."""
    if jax.process_count() == 1:
        return value
    try:
        return bool(np.any(multihost_utils.process_allgather(np.bool_(value))))
    except Exception as error:
        raise_if_lost(error)
        raise


def raise_if_lost(error: Exception) -> None:
    """Raise `ProcessLost` if an error says that another process is gone."""
    text = str(error).lower()
    if jax.process_count() > 1 and any(sign in text for sign in _SIGNS):
        raise ProcessLost(_LOST) from error


def end(status: int) -> int:
    """Wait until all processes are here, disconnect from them, and return the exit status.

    After a failure this ends the process at once: the others, which wait for it, then end too.
    """
    if jax.distributed.is_initialized():
        if status not in (0, EXIT_RESUME):
            _exit(status)
        jax.distributed.shutdown()
    return status


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """End the process at once if the block raises, so that the others do not wait for it."""
    try:
        yield
    except BaseException:
        if not jax.distributed.is_initialized():
            raise
        logging.exception("This process of the run failed:")
        _exit(1)


def _exit(status: int) -> None:
    """Exit without the exit handlers of Python and JAX, which would wait for the others."""
    logging.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
