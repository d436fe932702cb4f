"""How a training ended: at its last step, or before, and with what.

Letters: S seeds side by side.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from apd_jax.errors import UserError
from apd_jax.runtime.processes import EXIT_RESUME

Row = dict[str, Any]


class Outcome(NamedTuple):
    """A training's state where it ended.

    Attributes:
      state: the state, leaves [S, ...].
      step: number of steps done, fewer than asked for after an early end.
      rows: the metrics at the end of every chunk, `{"step": t, name: [S]}`.
      seconds: time spent on these steps, by all commands together.
    """

    state: Any
    step: int
    rows: list[Row]
    seconds: float

    def history(self, index: int) -> list[Row]:
        """The metrics of one of the seeds."""

        def one(value):
            return value[index] if isinstance(value, list) else value

        return [{name: one(value) for name, value in row.items()} for row in self.rows]


def of_callback(error: Exception) -> str | None:
    """What Python code raised that a compiled program calls; None for other errors.

    A callback's error may come as JAX's or, from the transfer of results, as NumPy's ValueError.
    """
    known = isinstance(error, jax.errors.JaxRuntimeError) or type(error) is ValueError
    text = str(error).strip()
    return text.splitlines()[-1] if known and "callback" in text.lower() else None


class EndedEarly(Exception):
    """A training ended before its last step.

    Attributes:
      step: number of steps done; None where only `outcome` knows.
      state: the state after these steps, leaves [S, ...]; None where it cannot be used.
      outcome: what `session.fit` kept of the training; None without a usable state.
      decomposition: the same as a `Decomposition`, from `decompose`; None without one.
    """

    def __init__(self, text: str, *, step: int | None = None, state: Any = None):
        super().__init__(text)
        self.step, self.state = step, state
        self.outcome: Outcome | None = None
        self.decomposition: Any = None


class Stopped(EndedEarly):
    """A stop was requested after `step`; its state is saved where there is a directory."""

    step: int

    def __init__(self, step: int, what: str = "training", *, state: Any = None):
        super().__init__(f"{what} stopped at step {step}", step=step, state=state)


class Diverged(EndedEarly, UserError):
    """A loss, gradient or parameter is no longer finite; `outcome` has the last finite state.

    Attributes:
      places: numbers of the trainings side by side in which that happened.
    """

    def __init__(self, text: str, *, places: Sequence[int] = ()):
        super().__init__(text)
        self.places = tuple(places)


class DataFailed(EndedEarly, UserError):
    """The data raised an error after the first steps; the state is that of the last step done."""


class Terminated(EndedEarly, SystemExit):
    """SIGTERM asked the process to end, before this training's first step.

    A `SystemExit`, so that a script ends here without a traceback.

    Attributes:
      code: exit status of the process, that of a run which was stopped and can be resumed.
    """

    def __init__(self, text: str):
        super().__init__(text)
        self.code = EXIT_RESUME
