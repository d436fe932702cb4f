"""Names of the leaves of a pytree."""

import collections
from typing import Any

import jax

from apd_jax.errors import UserError


def leaf_name(path: Any) -> str:
    """Name of the leaf at a key path of JAX: its keys, joined with "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_names(tree: Any) -> list[str]:
    """Names of all leaves, in order.

    Raises:
      UserError: two leaves with one name.
    """
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    twice = sorted(name for name, count in collections.Counter(names).items() if count > 1)
    if twice:
        raise UserError(
            f"every array needs a name of its own, several are called {twice}: rename keys that "
            "hold a '/'"
        )
    return names
