"""Progress of a loop: a bar on a terminal or in a notebook, log lines elsewhere."""

import sys
import time
from typing import Any

import jax
import numpy as np
import tqdm
from absl import logging

from apd_jax.runtime.closing import Closing

_SECONDS_BETWEEN_LINES = 10.0


class Progress(Closing):
    """Progress of one loop, on stderr, from process 0 only.

    On a terminal or in a notebook this is a tqdm bar. Elsewhere (a log file, a batch system) it is
    an absl log line at the first update, at most one every 10 seconds after it, and one at the end.
    """

    def __init__(
        self,
        total: int,
        description: str,
        unit: str = "step",
        *,
        initial: int = 0,
        opening: str = "",
    ):
        """Start the clock.

        Args:
          total: number of units.
          description: name of the loop, like "decompose".
          unit: name of one unit, in the singular.
          initial: number of units done earlier, which do not count for the speed.
          opening: a sentence that is shown first, above the bar or as a log line.
        """
        self._total, self._description = total, description
        self._units = unit + ("es" if unit.endswith("s") else "s")
        self._initial = self._done = initial
        self._shown: dict[str, str] = {}
        self._start, self._last_line = time.monotonic(), -np.inf
        self._stale = False
        self._speaks = jax.process_index() == 0
        self._bar = None
        if self._speaks and _has_bars():
            self._bar = tqdm.tqdm(
                total=total, desc=description, unit=unit, initial=initial, dynamic_ncols=True
            )
        if self._bar is not None and opening:
            self._bar.write(opening, file=sys.stderr)
        elif self._speaks and opening:
            logging.info("%s", opening)

    def update(self, done: int, **shown: Any) -> None:
        """Show the number of finished units, together with other numbers.

        Args:
          done: units finished since the start of the loop (not since the last update).
          **shown: a number for each name, or an array with one number per seed, shown as its mean.
        """
        self._shown = {name: f"{np.mean(value):.3g}" for name, value in shown.items()}
        advance, self._done = done - self._done, done
        self._stale = True
        if self._bar is not None:
            self._bar.set_postfix(self._shown, refresh=False)
            self._bar.update(advance)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._log()

    def close(self) -> None:
        """Show the last update if it has not been shown, and end the bar."""
        if self._bar is not None:
            self._bar.close()
        elif self._stale:
            self._log()

    def _log(self) -> None:
        self._last_line, self._stale = time.monotonic(), False
        if not self._speaks:
            return
        speed = (self._done - self._initial) / max(self._last_line - self._start, 1e-9)
        parts = [
            f"{self._description}: {self._done}/{self._total} {self._units}",
            f"{speed:.3g} {self._units}/s",
        ]
        if speed > 0 and self._done < self._total:
            parts.append(f"{tqdm.tqdm.format_interval((self._total - self._done) / speed)} left")
        parts += [f"{name} {value}" for name, value in self._shown.items()]
        logging.info("%s", ", ".join(parts))


def _has_bars() -> bool:
    """Whether stderr can show a progress bar: a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules
