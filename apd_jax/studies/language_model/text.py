"""Text that every machine has: the source of Python's standard library, as bytes.

Letters: N number of bytes, B batch, T length of a context.
"""

import dataclasses
import functools
import pathlib
import sysconfig
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.errors import UserError

VOCABULARY = 256
HELD_OUT = 10  # one file in so many is held out
# Tests are long tables of cases; installed packages differ from machine to machine.
_LEFT_OUT = ("test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__")


@functools.lru_cache
def source_files() -> tuple[pathlib.Path, ...]:
    """The library's modules, in an order that depends on their names alone.

    Files are ordered by the checksum of their path, so that any first part of them is a mixture.
    """
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    files = [path.relative_to(root) for path in root.rglob("*.py")]
    kept = [path for path in files if not set(path.parts[:-1]) & set(_LEFT_OUT)]
    ordered = sorted(kept, key=lambda path: (_checksum(path), path.as_posix()))
    return tuple(root / path for path in ordered)


def _checksum(path: pathlib.Path) -> int:
    return zlib.crc32(path.as_posix().encode())


@functools.lru_cache
def text(num_bytes: int, held_out: bool) -> np.ndarray:
    """Source code of the standard library, uint8 [N].

    Args:
      num_bytes: N, the number of bytes wanted; fewer where the library has fewer.
      held_out: take the files that are held out, one in ten, instead of the others.

    Raises:
      UserError: this Python comes without the source of its library.
    """
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    pieces, total = [], 0
    for path in source_files():
        if (_checksum(path.relative_to(root)) % HELD_OUT == 0) != held_out:
            continue
        pieces.append(path.read_bytes() + b"\n")
        total += len(pieces[-1])
        if total >= num_bytes:
            break
    if not pieces:
        raise UserError(
            f"no Python source was found in {root}: the language model is trained on the source "
            "of the standard library, which this Python installation lacks; use one that has it"
        )
    return np.frombuffer(b"".join(pieces), np.uint8)[:num_bytes]


@dataclasses.dataclass(frozen=True)
class Contexts:
    """A distribution of contexts [B, T]: T consecutive bytes from a place drawn at random.

    Attributes:
      length: T.
      num_bytes: size of the text.
      held_out: whether to read the files that are held out.
    """

    length: int
    num_bytes: int
    held_out: bool = False

    def __call__(self, key: jax.Array, batch_size: int) -> jax.Array:
        """Draw contexts, int32 [B, T]."""
        whole = text(self.num_bytes, self.held_out)
        starts = jax.random.randint(key, (batch_size,), 0, len(whole) - self.length + 1)
        places = starts[:, None] + jnp.arange(self.length)
        return jnp.asarray(whole)[places].astype(jnp.int32)


def decode(tokens: np.ndarray) -> str:
    """Bytes [T] as text, line breaks and tabs drawn as signs."""
    signs = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
    raw = bytes(np.asarray(tokens, np.uint8)).decode("utf-8", errors="replace")
    return "".join(signs.get(letter, letter) for letter in raw)
