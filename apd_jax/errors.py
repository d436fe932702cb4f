"""The class of errors that users can fix."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """A request that cannot be met. The message says why, what was expected, and how to fix it.

    The command line shows only the message. Any other error is a bug and keeps its traceback.
    """


@contextlib.contextmanager
def about(what: str) -> Iterator[None]:
    """Begin the messages of errors in the block with what they are about: `what: message`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
