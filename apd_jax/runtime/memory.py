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
    except (OSError, AttributeError):
        return


def total() -> int:
    """Return the total memory of the devices in bytes, or the machine's if they report none."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    known = sum(each.get("bytes_limit", 0) for each in stats)
    return known or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
