"""Stopping between two chunks: SIGTERM (a scheduler's notice) and SIGINT (Ctrl-C)."""

import contextlib
import contextvars
import os
import signal
import threading
from collections.abc import Iterator

EXIT_RESUME = 75
"""Exit status of a run that was stopped and is saved: rerunning the command resumes it."""


class StopFlag:
    """Whether the process was asked to stop.

    Attributes:
      requested: becomes True with the first signal.
      terminated: becomes True with SIGTERM, which asks the process to end.
    """

    terminated = False

    def __init__(self) -> None:
        self.requested = False

    def _on_signal(self, number: int, unused_frame: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        self.terminated = self.terminated or number == signal.SIGTERM
        hint = "; again to stop at once" if number == signal.SIGINT else ""
        # Straight to the file: the signal may have come while logging or printing.
        name = signal.Signals(number).name
        with contextlib.suppress(OSError):  # nobody may be listening
            os.write(2, f"\n{name}: stopping after this chunk{hint}\n".encode())


_watched: contextvars.ContextVar[tuple[StopFlag, Exception] | None] = contextvars.ContextVar(
    "watched", default=None
)


@contextlib.contextmanager
def watch(flag: StopFlag, stopped: Exception) -> Iterator[None]:
    """Let `stop_if_asked`, wherever in the block, raise `stopped` once `flag` is up."""
    token = _watched.set((flag, stopped))
    try:
        yield
    finally:
        _watched.reset(token)


def stop_if_asked() -> None:
    """Called between the pieces of work that takes long and has nothing to save."""
    watched = _watched.get()
    if watched is not None and watched[0].requested:
        raise watched[1]


@contextlib.contextmanager
def catch_signals() -> Iterator[StopFlag]:
    """Note SIGTERM and SIGINT instead of dying of them, as long as the block runs.

    The loop asks `flag.requested` between chunks. A second SIGINT raises KeyboardInterrupt.
    Python handles signals in the main thread only: in others the flag stays False.
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
