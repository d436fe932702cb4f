"""The one class of errors that whoever uses the package can mend."""


class UserError(ValueError):
    """Something asked for cannot be had; the text says what, what was expected, and the way out.

    The command line shows its text alone. Every other error is a mistake in the code and keeps its
    traceback.
    """
