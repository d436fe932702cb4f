"""Serialised pytrees: leaves by path, and a description of the containers.

dict, list, tuple and None are described and rebuilt. Other containers (NamedTuples, dataclasses,
dicts with keys that JSON lacks) are code; rebuilding them needs a template, a tree with the
structure of the saved one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.errors import UserError
from apd_jax.sites import leaf_names
from apd_jax.sites.parameters import plain_key, plain_keys

PyTree = Any


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their `/`-separated paths, in order.

    Raises:
      UserError: two leaves have the same path.
    """
    return dict(zip(leaf_names(tree), map(jnp.asarray, jax.tree.leaves(tree)), strict=True))


def describe(tree: PyTree) -> Any:
    """Describe the containers of a tree as a JSON object; code by the name of its type."""
    if tree is None:
        return {"none": None}
    if type(tree) is dict:
        try:
            return {"dict": [[plain_key(key), describe(tree[key])] for key in sorted(tree)]}
        except UserError:
            return {"code": "dict with keys that JSON lacks"}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [describe(item) for item in tree]}
    if jax.tree_util.all_leaves([tree]):
        return {"leaf": None}
    return {"code": type(tree).__qualname__}


def rebuild(description: Any, leaves: dict[str, Any], template: PyTree | None = None) -> PyTree:
    """Rebuild a tree from the results of `describe` and `leaves_by_path`.

    Args:
      description: description of the containers.
      leaves: leaves in order.
      template: a tree with the same containers; required if some of them are code.

    Raises:
      UserError: containers are code and there is no template, or the template has other leaves.
    """
    if template is not None:
        return _like(template, leaves)
    name = code(description)
    if name:
        raise UserError(
            f"the parameters are stored in a {name}, which is code and was not saved: pass a "
            "Target of the network, or params with the structure of those that were decomposed"
        )
    return _made(description, iter(leaves.values()))


def _like(template: PyTree, leaves: dict[str, Any]) -> PyTree:
    template = plain_keys(template)
    structs = {path: np.shape(leaf) for path, leaf in leaves_by_path(template).items()}
    shapes = {path: np.shape(leaf) for path, leaf in leaves.items()}
    if structs != shapes:
        differing = sorted(set(structs.items()) ^ set(shapes.items()))
        raise UserError(
            "the network's parameters differ from the saved ones in these names and shapes: "
            f"{differing[:6]}; give the network that was decomposed"
        )
    ordered = [leaves[path] for path in structs]
    return jax.tree.unflatten(jax.tree.structure(template), ordered)


def code(description: Any) -> str:
    """The name of a container type that is code in a description, or an empty string."""
    ((kind, inner),) = description.items()
    if kind == "code":
        return inner
    parts = [part for _, part in inner] if kind == "dict" else inner or []
    return next((name for name in map(code, parts) if name), "")


def _key(saved: Any) -> Any:
    """The key that was saved; a list can only have been a tuple."""
    return tuple(map(_key, saved)) if isinstance(saved, list) else saved


def _made(description: Any, leaves: Any) -> PyTree:
    ((kind, inner),) = description.items()
    if kind == "dict":
        return {_key(key): _made(part, leaves) for key, part in inner}
    if kind == "list":
        return [_made(part, leaves) for part in inner]
    if kind == "tuple":
        return tuple(_made(part, leaves) for part in inner)
    return None if kind == "none" else next(leaves)
