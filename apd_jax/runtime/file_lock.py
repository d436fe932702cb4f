"""A lock on an open file, by what the operating system has; it ends with the process."""

import errno
import os

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:  # everywhere else
    msvcrt = None  # type: ignore[assignment]

# What systems say where the file system has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
# Windows keeps others from reading a locked byte: lock one far behind the content.
_FAR = 2**30


class NoLocks(Exception):
    """This system, or this file system, has no locks."""


def acquire(file: int) -> bool:
    """Lock an open file without waiting.

    Args:
      file: file descriptor, open for reading and writing.

    Returns:
      True if the lock is ours, False if another process holds it.

    Raises:
      NoLocks: nobody can lock a file here.
      OSError: the file cannot be locked for another reason.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            os.lseek(file, _FAR, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            raise NoLocks("Python has neither fcntl nor msvcrt here")
    except (BlockingIOError, PermissionError):  # of fcntl, of msvcrt
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise NoLocks(str(error.strerror)) from error
        raise
    return True


def write(file: int, content: bytes) -> None:
    """Replace the content of an open file."""
    os.ftruncate(file, 0)
    os.lseek(file, 0, os.SEEK_SET)
    os.write(file, content)


def read(file: int, size: int) -> bytes:
    """The first bytes of an open file."""
    os.lseek(file, 0, os.SEEK_SET)
    return os.read(file, size)
