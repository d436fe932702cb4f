"""Standard streams that may be closed, or that nobody reads any more."""

import contextlib
import os
import sys

from absl import logging


def open_missing() -> None:
    """Put /dev/null where a standard stream is closed.

    Otherwise the next file that is opened takes its number, and gets what is written to it.
    """
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
    try:
        for line in lines:
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
            print(line.encode(encoding, errors="backslashreplace").decode(encoding))
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
