"""Measuring processes, which exchange JSON objects, one per line, on standard input and output.

Every config is measured in a separate process, so that peak memory is measured per config. This
module needs only the standard library, so that a Python without JAX can run it.
"""

import contextlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
_ERROR_TAIL = 3000


class Channel:
    """The measuring side of the exchange; other prints go to standard error."""

    def __init__(self):
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, message: dict[str, Any]) -> None:
        """Send a JSON object as answer."""
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def receive(self) -> dict[str, Any] | None:
        """Return the next request; None if the requesting side has closed."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None


class Worker:
    """The requesting side: a process that measures while a request is open and sleeps otherwise.

    Attributes:
      ready: Answer of the process to the first request.
    """

    def __init__(self, process: subprocess.Popen, errors: IO[bytes], request: dict[str, Any]):
        self._process, self._errors = process, errors
        self.ready = self.ask(request)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
          RuntimeError: The process ended; the message has the end of its standard error.
        """
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(self._errors.tell() - _ERROR_TAIL, 0))
        tail = self._errors.read().decode(errors="replace")
        raise RuntimeError(f"{self._process.args} ended on {request}:\n{tail}")


@contextlib.contextmanager
def worker(command: list[str], request: dict[str, Any]) -> Iterator[Worker]:
    """Start a process in the checkout, wait until it is ready, and end it on exit.

    Args:
      command: Command line of the process.
      request: First request to the process, which says what to prepare.

    Raises:
      RuntimeError: The process ended.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, cwd=ROOT, stderr=errors, **pipes) as process,
    ):
        try:
            yield Worker(process, errors, request)
        finally:
            process.kill()


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def enough(seconds: list[float], request: dict[str, Any]) -> bool:
    """Return whether steps that took `seconds` complete a request for `steps` or `seconds`."""
    if request.get("steps"):
        return len(seconds) >= request["steps"]
    return bool(seconds) and sum(seconds) >= request["seconds"]


def peak_memory() -> int:
    """Return the peak memory of this process in bytes."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        # getrusage would do, but its maximum is inherited from the parent process.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
