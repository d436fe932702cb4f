"""Standard streams that may be closed or whose reader may be gone."""

import atexit
import contextlib
import logging as std_logging
import os
import sys

from absl import logging


def open_missing() -> None:
    """Open /dev/null for closed standard streams, and at exit for a stderr that cannot be written.

    Otherwise the next opened file would get the stream's number, and receive what is written to it.
    If stderr is on a full disk, Python 3.13 would exit with status 120, whatever the run's status.
    """
    atexit.register(_flush, "stderr")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
        setattr(sys, name, open(number, "r+" if number == 0 else "w", closefd=False))  # noqa: SIM115
        if name == "stderr":
            logging.get_absl_handler().python_handler.stream = sys.stderr


class LogLines(std_logging.Formatter):
    """Lines of the log: the time, the level from warnings upwards, and the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: std_logging.LogRecord) -> str:
        """The first line of a record."""
        if record.levelno >= std_logging.WARNING:
            record.message = f"{record.levelname}: {record.message}"
        return super().formatMessage(record)


def say(*lines: str) -> None:
    """Print lines; a closed reader or a full disk is not a failure of the run."""
    with contextlib.suppress(OSError, ValueError):
        for line in lines:
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
            print(line.encode(encoding, errors="backslashreplace").decode(encoding))
    _flush("stdout")


def _flush(name: str) -> None:
    """Flush a standard stream, or redirect it to /dev/null if it cannot be written."""
    stream = getattr(sys, name)
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
