"""Stops between two chunks of steps, on SIGTERM (from a scheduler) or SIGINT (Ctrl-C).

Ctrl-C stops one decomposition of a process, SIGTERM all that follow.
"""

import contextlib
import contextvars
import os
import signal
import threading
from collections.abc import Callable, Iterator

from absl import logging

from apd_jax.runtime import processes
from apd_jax.runtime.outcome import Terminated


class StopFlag:
    """A flag that records a request to stop.

    Attributes:
      requested: becomes True with the first signal.
      terminated: becomes True with SIGTERM, which asks the process to end.
    """

    terminated = False

    def __init__(self) -> None:
        self.requested = False

    def asked(self, otherwise: bool = False) -> bool:
        """Whether this or any other process of the run is to stop; all processes must call this.

        Args:
          otherwise: whether this process is to stop for another reason.
        """
        return processes.any_of(self.requested or otherwise)

    def _on_signal(self, number: int, unused_frame: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        self.terminated = self.terminated or number == signal.SIGTERM
        hint = "; again to stop at once" if number == signal.SIGINT else ""
        # Written directly to the file: the signal may arrive while logging or printing.
        name = signal.Signals(number).name
        with contextlib.suppress(OSError):  # stderr may be closed
            os.write(2, f"\n{name}: stopping after this chunk of work{hint}\n".encode())


_Watched = tuple[Callable[[], bool], Exception]
_watched: contextvars.ContextVar[_Watched | None] = contextvars.ContextVar("watched", default=None)


@contextlib.contextmanager
def watch(asked: Callable[[], bool], stopped: Exception) -> Iterator[None]:
    """Make `stop_if_asked`, anywhere in the block, raise `stopped` once `asked()` is true."""
    token = _watched.set((asked, stopped))
    try:
        yield
    finally:
        _watched.reset(token)


def stop_if_asked() -> None:
    """Stop here if asked to; called between parts of long work that has nothing to save.

    Where `asked` concerns all processes of a run, all call this at the same places.
    """
    watched = _watched.get()
    if watched is not None and watched[0]():
        raise watched[1]


@contextlib.contextmanager
def catch_signals() -> Iterator[StopFlag]:
    """Record SIGTERM and SIGINT in a flag, instead of terminating, while the block runs.

    The loop checks `flag.asked()` between chunks. A second SIGINT raises KeyboardInterrupt.
    Python handles signals in the main thread only; in other threads the flag stays False.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, flag._on_signal) for number in numbers}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
