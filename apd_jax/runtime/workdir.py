"""The directory of one run: where everything lies, who may write to it, and for which config."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
from absl import logging

from apd_jax.config_fields import present_value
from apd_jax.errors import UserError
from apd_jax.runtime import paths

_ABSENT = "absent"
_BEFORE_CONFIG = {".lock", ".config.json.tmp"}  # what a run writes before it has a config
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # what file systems without locks say


class WorkdirError(UserError):
    """The directory cannot be used; the message says why and what to do."""


class WorkdirMismatch(WorkdirError):
    """The directory belongs to a run with another config."""


class Workdir:
    """Directory of one run, held for as long as this object is open.

    Attributes:
      path: the directory. In it: `config` (config.json), `target`, `checkpoints`, `metrics`
        (metrics.jsonl), `results` (results.json), `figures`, `report` (report.html).
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Make the directory, check that it can be written to, and lock out other processes.

        The lock is the kernel's and goes with the process, however that ends. Only process 0 of a
        run with several takes it.

        Raises:
          WorkdirError: it is not on this machine, holds files that no run wrote (they are left
            as they are), cannot be written to, or another process works in it.
        """
        try:
            self.path = paths.local(path)
        except UserError as error:
            raise WorkdirError(str(error)) from error
        self.config = self.path / "config.json"
        self.target = self.path / "target"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.results = self.path / "results.json"
        self.figures = self.path / "figures"
        self.report = self.path / "report.html"
        self._lock: int | None = None
        self._lock_file, self._made_lock = self.path / ".lock", False
        self._check_ours()
        if jax.process_index() == 0:
            self._take()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read_config(self) -> dict[str, Any] | None:
        """The config that the directory belongs to, or None while it belongs to none.

        Raises:
          WorkdirError: config.json is not one that a run wrote.
        """
        try:
            config = json.loads(self.config.read_bytes())
            if not isinstance(config, dict):
                raise ValueError("no JSON object")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise WorkdirError(
                f"{self.config} cannot be read ({error}): put it back, or delete {self.path}."
            ) from error
        return config

    def claim(
        self,
        config: Mapping[str, Any],
        *,
        free: Sequence[str] = (),
        defaults: Mapping[str, Any] | None = None,
    ) -> bool:
        """Make this the directory of `config`, or check that it is.

        Args:
          config: a JSON object; tuples count as lists.
          free: dotted names of fields, or of groups of fields, that may change between the
            commands of one run because they don't change its numbers.
          defaults: the defaults of all fields. A saved config that is older than a field has its
            default, which stands for how it was before.

        Returns:
          True where the directory was this run's already.

        Raises:
          WorkdirMismatch: it is the directory of another config; names every field that differs.
          WorkdirError: nobody can tell whose directory it is.
        """
        try:
            return self._claim(json.loads(json.dumps(config)), free, defaults or {})
        except WorkdirError:
            if self._made_lock:  # nothing of ours stays in a directory of somebody else
                self._lock_file.unlink(missing_ok=True)
            raise

    def _claim(
        self, asked: dict[str, Any], free: Sequence[str], defaults: Mapping[str, Any]
    ) -> bool:
        saved = self.read_config()
        if saved is not None:
            if 2 * len(asked.keys() & saved.keys()) < len(asked):
                raise WorkdirError(
                    f"{self.config} is not the config of a run: take a new or empty --workdir."
                )
            known = _flat(dict(defaults)) if defaults else {}
            differing = _differences(known | _flat(saved), _flat(asked), free)
            if differing:
                raise WorkdirMismatch(
                    f"{self.path} belongs to a run with another config (saved -> asked):\n  "
                    + "\n  ".join(differing)
                    + "\nTake another --workdir, or delete this one."
                )
        if saved != asked and jax.process_index() == 0:
            atomic_write_text(self.config, json.dumps(asked, indent=2) + "\n")
        return saved is not None

    def _check_ours(self) -> None:
        """Raise WorkdirError where the directory holds files that no run wrote."""
        try:
            names = paths.names_in(self.path) - _BEFORE_CONFIG
        except OSError as error:
            raise WorkdirError(f"{self.path} cannot be read ({error.strerror}).") from error
        if names and self.config.name not in names:
            shown = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
            raise WorkdirError(
                f"{self.path} holds files ({shown}) and {self.config.name} is missing: put it back "
                "if they are a run's, else take a new or empty --workdir."
            )

    def _take(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as probe:
                probe.write(b"can this directory hold a file?")
            self._made_lock = not self._lock_file.exists()
            self._lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o666)
            holder = _lock(self._lock)
        except OSError as error:
            self.close()
            raise WorkdirError(
                f"{self.path} cannot be written to ({error.strerror}): make room or writable, or "
                "take another --workdir."
            ) from error
        if holder:
            self.close()
            raise WorkdirError(
                f"{self.path} is in use by process {holder}: wait for it, stop it, or take another "
                "--workdir."
            )


def _lock(file: int) -> str | None:
    """Lock an open file and write our name into it, or return the name of who holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(file, 99, 0).decode() or "unknown"
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logging.warning("The file system has no locks: start one process in a workdir only.")
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
    return None


def atomic_write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all: under another name, flushed to disk, then renamed.

    Raises:
      OSError: it cannot be written; what was there before is untouched.
    """
    path = pathlib.Path(path)
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk has no name


def atomic_write_text(path: str | os.PathLike[str], content: str) -> None:
    """`atomic_write_bytes` for text, in UTF-8, with escapes for names of files that are not."""
    atomic_write_bytes(path, content.encode(errors="backslashreplace"))


def _differences(old: dict[str, str], new: dict[str, str], free: Sequence[str]) -> list[str]:
    """Lines `name: saved -> asked` for every field that differs and is not free."""
    names = [name for name in old | new if old.get(name, _ABSENT) != new.get(name, _ABSENT)]
    bound = [n for n in names if not any(n == f or n.startswith(f"{f}.") for f in free)]
    return [f"{n}: {old.get(n, _ABSENT)} -> {new.get(n, _ABSENT)}" for n in sorted(bound)]


def _flat(config: Any, prefix: str = "") -> dict[str, str]:
    """Dotted name -> value as JSON; lists are values, an empty group is one too."""
    if not isinstance(config, dict) or not config:
        return {prefix: json.dumps(present_value(prefix.rpartition(".")[2], config))}
    fields: dict[str, str] = {}
    for key, value in config.items():
        fields |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return fields
