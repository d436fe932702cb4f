"""How freed memory goes back to the system."""

import ctypes

_M_MMAP_THRESHOLD = -3
_LARGE = 16_000_000


def return_large_arrays() -> None:
    """Have glibc give arrays of 16 MB or more back as soon as they are freed.

    By default it keeps freed arrays of up to 32 MB for later, and the gaps between those that
    checkpoints and evaluation leave behind add up. No effect where there is no glibc.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
    except (OSError, AttributeError, TypeError):
        return
