"""Saving of decompositions: what is written in addition to the components."""

import os
from typing import Any

import jax

from apd_jax import config_fields
from apd_jax.decomposition import function_identity
from apd_jax.decomposition.odd_leaves import packed
from apd_jax.evaluation.model import ComponentModel
from apd_jax.objective.gates import Gated
from apd_jax.runtime import export, trees
from apd_jax.sites import PyTree


def save(decomposition: ComponentModel, directory: str | os.PathLike[str]) -> None:
    """Write a decomposition; see `Decomposition.save`."""
    target, example = decomposition.target, decomposition.example
    config = {
        "settings": config_fields.plain(config_fields.to_mapping(decomposition.settings)),
        "sites": list(target.sites),
        "history": decomposition.history,
        "losses": list(decomposition.losses),
        "moves": dict(decomposition.moves),
        "pilots": list(decomposition.pilots),
        "params": trees.describe(target.params),
        "paths": list(trees.leaves_by_path(target.params)),
    }
    check: dict[str, Any] = {}
    if example is not None:
        config["example"] = trees.describe(example)
        inputs, config["odd_inputs"] = packed(_numbered(example))
        check |= {"inputs": inputs} if inputs else {}
        check["outputs"] = function_identity.given(target, example)["network"]
    if isinstance(decomposition.components, Gated):
        check["gates"] = decomposition.components.gates._asdict()
    network: Any = target.apply_fn
    if hasattr(network, "with_state"):  # what was fixed of a model of a known library
        state = network.state
        config["network"] = network.settings | {"state": trees.describe(state)}
        if jax.tree.leaves(state):
            check["state"], config["odd_state"] = packed(_numbered(state))
    params, config["odd_params"] = packed(trees.leaves_by_path(target.params))
    export.save_components(directory, decomposition.components, params, config, check or None)


def _numbered(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their numbers."""
    return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree))}
