"""Return of freed memory to the system, and the memory that is available."""

import ctypes
import os

import jax


def give_back() -> None:
    """Return the free memory of the heap to the system.

    glibc retains freed arrays of up to 32 MB, and those of checkpoints and evaluation accumulate.
    Disabling this would cost every training step the page faults of its scratch arrays (a sixth of
    the time with one layer), so the heap is trimmed between chunks of steps instead. Without glibc
    this function has no effect.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):  # Windows refuses the name None
        return


def total() -> int | None:
    """Bytes of memory of all devices, of the machine where these don't say, None if unknown."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    known = sum(each.get("bytes_limit", 0) for each in stats)
    if known or not hasattr(os, "sysconf"):
        return known or None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
