"""Names of the leaves of a pytree."""

from typing import Any

import jax


def leaf_name(path: Any) -> str:
    """Name of the leaf at a key path of JAX: its keys, joined with "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
