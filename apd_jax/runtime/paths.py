"""Paths of directories: as given by users, and in a form that every library accepts."""

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator

from apd_jax.errors import UserError

_REMOTE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")  # pathlib makes "gs:/b" of "gs://b"
# Undecodable bytes of names are \udc80 to \udcff in text.
_NEVER = re.compile(r"[\0\ud800-\udc7f\udd00-\udfff]")
_PLAIN = re.compile(r"[\w/.+=@,-]*", re.ASCII)
_PLAIN_ON_WINDOWS = re.compile(r"[\w/.+=@, ~:\\-]*")  # more, as a link needs a privilege there
# Files that file systems and file managers create in any directory.
_LITTER = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.directory|lost\+found|\.nfs.*")
_DEEPEST = 500  # longest path in a run's directory, below it
_LONGEST = 4095


def local(path: str | os.PathLike[str]) -> pathlib.Path:
    """The absolute path of a local directory; `~` is expanded.

    Raises:
      UserError: the value is not a path, or the path is remote, names an unknown home, has a
        character that no path can have, or is too long for the files of a run.
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise UserError(f"the path of a directory must be a str or a pathlib.Path, got {path!r}")
    never = _NEVER.search(text)
    if never:
        raise UserError(f"{text!r:.200}: a path can't have the character {never[0]!r}; drop it.")
    if _REMOTE.match(text):
        raise UserError(
            f"{text} is a remote path, and runs need a local directory: mount it and pass the path "
            f"of the mount (or write ./{text} for a directory of that name)."
        )
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        raise UserError(f"{text}: there is no such home directory; write the full path.")
    absolute = pathlib.Path(expanded).absolute()
    length, longest = len(os.fsencode(absolute)), _LONGEST - _DEEPEST
    if length > longest:
        raise UserError(
            f"{text[:60]}... has {length} bytes, which is too long for the files in it: choose a "
            f"path of at most {longest} bytes."
        )
    return absolute


@contextlib.contextmanager
def plain(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a path of `directory` without characters that have a special meaning in a library.

    Tensorstore interprets brackets as patterns, drops backslashes and accepts UTF-8 only; orbax
    looks for names of cloud storage. A path without such characters is returned unchanged.

    Raises:
      UserError: the path has such characters, and no link to it can be made.
    """
    known = _PLAIN_ON_WINDOWS if os.name == "nt" else _PLAIN
    if known.fullmatch(str(directory)):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="apd_jax-") as folder:
        link = pathlib.Path(folder) / "here"
        try:
            link.symlink_to(directory, target_is_directory=True)
        except (OSError, NotImplementedError) as error:
            raise UserError(
                f"{directory} has characters that need a link to it, which can't be made here "
                f"({error}): choose a path of letters, digits, '-', '_' and '.'."
            ) from error
        yield link


def names_in(directory: pathlib.Path) -> set[str]:
    """The names in a directory without system files; empty if it does not exist."""
    if not directory.is_dir():
        return set()
    return {path.name for path in directory.iterdir() if not _LITTER.fullmatch(path.name)}


def remove_all(directory: pathlib.Path, pattern: str) -> None:
    """Remove the folders of that pattern that a failed save left in a directory.

    Threads of the save may write there for a moment longer, hence several attempts. What is left
    after them stays.
    """
    for _ in range(20):
        left = list(directory.glob(pattern))
        if not left:
            return
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.1)
