"""The directory of a run: its files, its lock, and the config that it belongs to."""

import contextlib
import decimal
import json
import os
import pathlib
import socket
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging

from apd_jax.config_fields.former_names import present
from apd_jax.errors import UserError
from apd_jax.runtime import file_lock, paths
from apd_jax.runtime.closing import Closing

_ABSENT = "absent"
_BEFORE_CONFIG = {".lock", ".config.json.tmp"}  # what a run writes before it has a config


class WorkdirError(UserError):
    """The directory cannot be used; the message says why and what to do."""


class WorkdirMismatch(WorkdirError):
    """The directory belongs to a run with another config."""


class Workdir(Closing):
    """Directory of a run, locked while this object is open.

    Attributes:
      path: the directory. Other attributes are paths in it: `config` (config.json), `target`,
        `checkpoints`, `metrics` (metrics.jsonl), `results` (results.json), `figures`, `report`
        (report.html).
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Create the directory, check that it is writable, and lock out other processes.

        The kernel releases the lock when the process ends, in any way. In a run with several
        processes only process 0 takes it.

        Raises:
          WorkdirError: the directory is not on this machine, holds files that no run wrote (they
            are not changed), cannot be written to, or is in use by another process.
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

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read_config(self) -> dict[str, Any] | None:
        """The config that the directory belongs to, or None if it has none yet.

        Raises:
          WorkdirError: config.json was not written by a run.
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
        """Claim the directory for `config`, or check that it belongs to it.

        Args:
          config: a JSON object; tuples count as lists.
          free: dotted names of fields, or of groups of fields, that may change between the commands
            of one run because they do not change results.
          defaults: default values of all fields. They apply to fields that are missing in a saved
            config because it is older.

        Returns:
          True if the directory already belonged to this run.

        Raises:
          WorkdirMismatch: it belongs to another config; the message names every different field.
          WorkdirError: the owner of the directory cannot be determined.
        """
        try:
            return self._claim(json.loads(json.dumps(config)), free, defaults or {})
        except WorkdirError:
            if self._made_lock:  # leave no file in a directory that is not ours
                self._lock_file.unlink(missing_ok=True)
            raise

    def _claim(
        self, asked: dict[str, Any], free: Sequence[str], defaults: Mapping[str, Any]
    ) -> bool:
        saved = self.read_config()
        if saved is not None:
            if 2 * len(asked.keys() & saved.keys()) < len(asked):
                raise WorkdirError(
                    f"{self.config} is not the config of a run: choose a new or empty workdir."
                )
            known = _flat(dict(defaults)) if defaults else {}
            differing = _differences(known | _flat(present(saved)), _flat(asked), free)
            if differing:
                raise WorkdirMismatch(
                    f"{self.path} belongs to a run with another config (saved -> requested):\n  "
                    + "\n  ".join(differing)
                    + "\nChoose another workdir, or delete this one."
                )
        if saved != asked:
            atomic_write_text(self.config, json.dumps(asked, indent=2) + "\n")
        return saved is not None

    def _check_ours(self) -> None:
        """Raise WorkdirError if the directory holds files that no run wrote."""
        try:
            names = paths.names_in(self.path) - _BEFORE_CONFIG
        except OSError as error:
            raise WorkdirError(f"{self.path} cannot be read ({error.strerror}).") from error
        if names and self.config.name not in names:
            shown = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
            raise WorkdirError(
                f"{self.path} holds files ({shown}) and {self.config.name} is missing: put it back "
                "if the files belong to a run, otherwise choose a new or empty workdir."
            )

    def _take(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as probe:
                probe.write(b"can this directory hold a file?")
            self._made_lock = not self._lock_file.exists()
            self._lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o666)
            holder = _lock(self._lock)
        except (FileExistsError, NotADirectoryError) as error:
            self.close()
            raise WorkdirError(
                f"{self.path} is no directory, and there is a file in its place or above it: "
                "choose another workdir."
            ) from error
        except OSError as error:
            self.close()
            raise WorkdirError(
                f"{self.path} cannot be written to ({error.strerror}): free disk space, make it "
                "writable, or choose another workdir."
            ) from error
        if holder:
            self.close()
            raise WorkdirError(
                f"{self.path} is in use by process {holder}: wait for it, stop it, or choose "
                "another workdir."
            )


def _lock(file: int) -> str | None:
    """Lock an open file and write our name into it, or return the name of its holder."""
    try:
        if not file_lock.acquire(file):
            return file_lock.read(file, 99).decode() or "unknown"
    except file_lock.NoLocks as error:
        logging.warning(
            "Files cannot be locked here (%s): use a workdir from one process only.", error
        )
    file_lock.write(file, f"{os.getpid()} on {socket.gethostname()}".encode())
    return None


def atomic_write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file completely or not at all: to a temporary file that is then renamed.

    In a run with several processes only process 0 writes.

    Raises:
      OSError: the file cannot be written; its previous content is untouched.
    """
    if jax.process_index() != 0:
        return
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
        raise OSError(error.errno, error.strerror, str(path)) from error  # adds the file's name


def atomic_write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write text like `atomic_write_bytes`, in UTF-8; undecodable file names are escaped."""
    atomic_write_bytes(path, content.encode(errors="backslashreplace"))


def _differences(old: dict[str, str], new: dict[str, str], free: Sequence[str]) -> list[str]:
    """Lines `name: saved -> requested` for every field that differs and is not free."""
    names = [n for n in old | new if not _same(old.get(n, _ABSENT), new.get(n, _ABSENT))]
    bound = [n for n in names if not any(n == f or n.startswith(f"{f}.") for f in free)]
    return [f"{n}: {old.get(n, _ABSENT)} -> {new.get(n, _ABSENT)}" for n in sorted(bound)]


def _same(old: str, new: str) -> bool:
    """Whether two values are the same in JSON, where 2 and 2.0 are one number."""
    if old == new or _ABSENT in (old, new):
        return old == new
    return _exact(old) == _exact(new)


def _exact(value: str) -> Any:
    """A value with its numbers as exact decimals, which are no equals of true and false."""

    def number(digits: str) -> tuple[str, decimal.Decimal]:
        return "number", decimal.Decimal(digits)

    return json.loads(value, parse_int=number, parse_float=number)


def _flat(config: Any, prefix: str = "") -> dict[str, str]:
    """Values as JSON by dotted name; lists and empty groups are values."""
    if not isinstance(config, dict) or not config:
        return {prefix: json.dumps(config)}
    fields: dict[str, str] = {}
    for key, value in config.items():
        fields |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return fields
