"""Timed batches for a training loop in PyTorch that this project did not write.

A driver passes `batches` to that loop. A step lasts from one batch to the next, including drawing
the batch. Between two requests the loop waits for its next batch.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import process


class Finished(Exception):
    """Raised without a further request, to leave the loop."""


class Device:
    """The device of the loop, `cpu` or `cuda`; must be created before any model."""

    def __init__(self, name: str):
        import torch

        self.name, self._cuda = name, torch.cuda
        self.libraries_memory = self.peak_memory()

    def wait(self) -> None:
        """Wait until all submitted work is done."""
        if self.name == "cuda":
            self._cuda.synchronize()

    def peak_memory(self) -> int:
        """Return the peak memory in bytes: of the accelerator if used, else of the process."""
        if self.name == "cuda":
            return self._cuda.max_memory_allocated()
        return process.peak_memory()


def batches(
    draw: Callable[[], Any], channel: process.Channel, warm: int, device: Device
) -> Iterator[Any]:
    """Yield batches while a request is open, then answer it with the seconds of every step.

    Args:
      draw: Returns a batch.
      channel: Where requests come from. The answer to the first one is sent after `warm` steps.
      warm: Number of steps before any timing, at least 1.
      device: Device of the loop.

    Raises:
      Finished: There is no further request.
    """
    request: dict[str, Any] | None = {"steps": warm}
    while request is not None:
        seconds: list[float] = []
        while not process.enough(seconds, request):
            start = time.perf_counter()
            yield draw()
            seconds.append(time.perf_counter() - start)
        device.wait()
        seconds[-1] = time.perf_counter() - start
        channel.send(
            {
                "seconds_per_step": seconds,
                "peak_memory": device.peak_memory(),
                "libraries_memory": device.libraries_memory,
            }
        )
        request = channel.receive()
    raise Finished
