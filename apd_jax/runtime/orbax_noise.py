"""Filters for messages of orbax and tensorstore that repeat the errors they raise."""

import logging as std_logging
import pathlib
import sys
from typing import Any

from absl import logging


def silence() -> None:
    """Drop orbax's lines from the log, and warnings about event loops that it has closed.

    Orbax logs every step, and also errors that it raises. If a write fails, tensorstore calls event
    loops that orbax has closed, dozens of times; the failure itself is raised.
    """
    logging.get_absl_logger().addFilter(_not_from_orbax)
    before = sys.unraisablehook
    if getattr(before, "silences_loops", False):
        return

    def hook(unraisable: Any) -> None:
        closed = isinstance(unraisable.exc_value, RuntimeError)
        if not (closed and str(unraisable.exc_value) == "Event loop is closed"):
            before(unraisable)

    hook.silences_loops = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook


def _not_from_orbax(record: std_logging.LogRecord) -> bool:
    """Whether to keep a line of the log."""
    return "orbax" not in pathlib.PurePath(record.pathname).parts
