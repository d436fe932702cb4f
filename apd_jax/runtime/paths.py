"""Directories as users name them, and under a name that every library takes as it stands."""

import contextlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

from apd_jax.errors import UserError

_REMOTE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")  # pathlib makes "gs:/b" of "gs://b"
_PLAIN = re.compile(r"[\w/.+=@,-]*", re.ASCII)
# What file systems and file managers put into any directory.
_LITTER = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.directory|lost\+found|\.nfs.*")
_DEEPEST = 500  # longest path in a run's directory, below it
_LONGEST = 4095


def local(path: str | os.PathLike[str]) -> pathlib.Path:
    """The absolute path of a directory of this machine, with `~` for a home.

    Raises:
      UserError: it is no path, a remote one, of nobody's home, or too long for what goes into it.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"the path of a directory must be a str or a pathlib.Path, got {path!r}")
    text = os.fspath(path)
    if _REMOTE.match(text):
        raise UserError(
            f"{text} is a remote path, and runs are kept on disks: mount it and give the path of "
            f"the mount (or write ./{text} for a directory of that name)."
        )
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        raise UserError(f"{text}: there is no such home; write the path in full.")
    absolute = pathlib.Path(expanded).absolute()
    length, longest = len(os.fsencode(absolute)), _LONGEST - _DEEPEST
    if length > longest:
        raise UserError(
            f"{text[:60]}... has {length} bytes, which leaves no room for the names of files in "
            f"it: take a path of at most {longest}."
        )
    return absolute


@contextlib.contextmanager
def plain(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Another path of `directory`, without characters that mean something to a library.

    Tensorstore looks for patterns in brackets, drops backslashes and takes UTF-8 only; orbax looks
    for the names of clouds. A path without such characters is given back as it is.
    """
    if _PLAIN.fullmatch(str(directory)):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="apd_jax-") as folder:
        link = pathlib.Path(folder) / "here"
        link.symlink_to(directory, target_is_directory=True)
        yield link


def names_in(directory: pathlib.Path) -> set[str]:
    """Names of what somebody put into a directory, empty where there is none."""
    if not directory.is_dir():
        return set()
    return {path.name for path in directory.iterdir() if not _LITTER.fullmatch(path.name)}
