"""Objects that are closed at the end of a `with` block."""

import abc
from typing import Self


class Closing(abc.ABC):
    """Calls `close` at the end of a `with` block."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except Exception as another:
            if error is None:
                raise
            error.add_note(f"Then closing failed: {another}")  # hides nothing of the error

    @abc.abstractmethod
    def close(self) -> None:
        """Finish what is under way, and give back what is held."""
