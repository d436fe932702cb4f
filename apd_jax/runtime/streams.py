"""Standard streams that may be closed, or that nobody reads any more."""

import atexit
import contextlib
import os
import sys

from absl import logging


def open_missing() -> None:
    """Put /dev/null where a standard stream is closed, and at exit where stderr can't be written.

    Otherwise the next file that is opened takes its number, and gets what is written to it; and
    a full disk under stderr would make Python 3.13 end with status 120, whatever the run's is.
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


def say(*lines: str) -> None:
    """Print lines. Where nobody reads or the disk is full, that is no failure of the run."""
    with contextlib.suppress(OSError, ValueError):
        for line in lines:
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
            print(line.encode(encoding, errors="backslashreplace").decode(encoding))
    _flush("stdout")


def _flush(name: str) -> None:
    """Write what a standard stream holds back, or give it up, as the flush at exit would fail."""
    stream = getattr(sys, name)
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
