"""Requests to stop the decompositions of a process: Ctrl-C stops one, SIGTERM all that follow."""

import contextlib
from collections.abc import Iterator

from absl import logging

from apd_jax.runtime.outcome import Terminated
from apd_jax.runtime.preemption import StopFlag, catch_signals


class _Process:
    terminated = False  # whether SIGTERM has stopped a decomposition in this process


@contextlib.contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """The flag that Ctrl-C and SIGTERM raise.

    Raises:
      Terminated: SIGTERM stopped an earlier decomposition. Whoever sent it waits for the process to
        end, which further decompositions of a script must not delay.
    """
    if _Process.terminated:
        text = (
            "SIGTERM asked this process to end, so no further decomposition is started; rerun "
            "the script, and decompositions with a workdir resume"
        )
        logging.error("%s", text)  # nothing shows what a SystemExit says
        raise Terminated(text)
    with catch_signals() as flag:
        try:
            yield flag
        finally:
            _Process.terminated |= flag.terminated
