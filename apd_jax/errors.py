"""The class of errors that users can fix."""


class UserError(ValueError):
    """A request that cannot be met. The message says why, what was expected, and how to fix it.

    The command line shows only the message. Any other error is a bug and keeps its traceback.
    """
