"""The record in a checkpoint: shape, dtype and sha256 of every leaf, to detect damage.

File systems lose and flip bits, and copies are interrupted. A restored state is compared with this
record before it is used.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from apd_jax.sites import leaf_names


class Damaged(Exception):
    """The data that were read differ from the data that were written."""


def layout(tree: Any) -> dict[str, str]:
    """Dtype and shape by leaf name, like `{"components/linear1/U": "float32[12,5,3]"}`.

    Args:
      tree: pytree of arrays or `jax.ShapeDtypeStruct`.

    Raises:
      UserError: two leaves have the same name, because a key contains a "/".
    """
    shapes = [f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for leaf in jax.tree.leaves(tree)]
    return dict(zip(leaf_names(tree), shapes, strict=True))


def digests(tree: Any) -> dict[str, str]:
    """The sha256 of each leaf's bytes in C order, by leaf name, for numpy arrays."""
    leaves = [np.ascontiguousarray(leaf).reshape(-1) for leaf in jax.tree.leaves(tree)]
    hashes = [hashlib.sha256(leaf.view(np.uint8).data).hexdigest() for leaf in leaves]
    return dict(zip(layout(tree), hashes, strict=True))


def fingerprint(tree: Any) -> str:
    """One sha256 of all leaves with their names. `tree`: pytree of numpy arrays."""
    return combine(digests(tree))


def combine(found: dict[str, str]) -> str:
    """The `fingerprint` of a tree whose `digests` these are."""
    return _digest(found)


def sha256_of_blocks(blocks: Iterable[np.ndarray]) -> str:
    """The sha256, as `digests` has it, of an array that comes in blocks of its rows."""
    whole = hashlib.sha256()
    for block in blocks:
        whole.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return whole.hexdigest()


def seal(host: Any, metadata: dict[str, Any]) -> dict[str, Any]:
    """The record of `host` (pytree of numpy arrays) and `metadata`, with a checksum."""
    record = {"metadata": metadata, "layout": layout(host), "digests": digests(host)}
    return record | {"sha256": _digest(record)}


def check_record(record: Any) -> None:
    """Raise `Damaged` if `record` differs from what `seal` returned."""
    content = {k: v for k, v in record.items() if k != "sha256"} if isinstance(record, dict) else {}
    if not content or record.get("sha256") != _digest(content):
        raise Damaged("its metadata is not what was saved")


def check_leaves(record: dict[str, Any], host: Any) -> None:
    """Raise `Damaged`, naming the leaves, if leaves of `host` differ from those given to `seal`."""
    found = digests(host)
    names = record["digests"].keys() | found.keys()
    wrong = sorted(name for name in names if record["digests"].get(name) != found.get(name))
    if wrong:
        raise Damaged(f"not what was saved: {', '.join(wrong)}")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
