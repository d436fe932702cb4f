"""Objects that are closed at the end of a `with` block."""

import abc
from typing import Self


class Closing(abc.ABC):
    """Calls `close` at the end of a `with` block."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused_exception: object) -> None:
        self.close()

    @abc.abstractmethod
    def close(self) -> None:
        """Finish what is under way, and give back what is held."""
