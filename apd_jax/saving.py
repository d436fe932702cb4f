"""Saved decompositions: what is written besides the components, and what is checked at loading."""

import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import fields, trees
from apd_jax.attribution.metrics import quantities
from apd_jax.components import Factors
from apd_jax.decomposition import Decomposition
from apd_jax.errors import UserError
from apd_jax.runtime import export
from apd_jax.settings import Settings
from apd_jax.sites import PyTree, Target

Network = nn.Module | Callable[[Any, Any], Any] | Target
_TOLERANCE = 1e-3


def save(decomposition: Decomposition, directory: str | os.PathLike[str]) -> None:
    """Write a decomposition; see `Decomposition.save`."""
    target, example = decomposition.target, decomposition.example
    config = {
        "settings": fields.plain(fields.to_mapping(decomposition.settings)),
        "sites": list(target.sites),
        "history": decomposition.history,
        "losses": list(decomposition.losses),
        "moves": dict(decomposition.moves),
        "params": trees.describe(target.params),
        "paths": list(trees.leaves_by_path(target.params)),
    }
    check = None
    if example is not None:
        config["example"] = trees.describe(example)
        inputs = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(example))}
        check = {"inputs": inputs, "outputs": _outputs(target, example)}
    params = trees.leaves_by_path(target.params)
    export.save_components(directory, decomposition.components, params, config, check)


def load(
    directory: str | os.PathLike[str],
    network: Network,
    *,
    params: PyTree | None = None,
    **functions: Callable,
) -> Decomposition:
    """Read what `Decomposition.save` wrote.

    Args:
      directory: the saved decomposition.
      network: the network itself, which is code and not saved: a `Target` of it as at the
        decomposing (with parameters of any values), the Flax module, or the function
        `(params, x) -> output`.
      params: parameters of the same types and shapes, needed where these are kept in NamedTuples,
        dataclasses or other classes and `network` is no `Target`.
      **functions: settings that were functions, such as `metric=`, which are not saved either.

    Raises:
      UserError: nothing was saved there; parameters or outputs of the network are not those of the
        one that was decomposed; a function is missing.
      runtime.checkpoint.CheckpointError: nothing whole is there.
    """
    saved = export.load_components(directory)
    config = saved.config
    example = _example(saved.check, config)
    leaves = {path: saved.target[path] for path in config["paths"]}
    target = _target(network, params, config, leaves)
    if example is not None:
        _check_same(target, example, saved.check["outputs"])
    components = {site: Factors.from_uv(f["U"], f["V"]) for site, f in saved.components.items()}
    return Decomposition(
        target,
        {site: components[site] for site in config["sites"]},
        _settings(config["settings"], functions),
        config["history"],
        example,
        config["losses"],
        config["moves"],
    )


def _target(network: Network, params: PyTree, config: Any, leaves: dict[str, Any]) -> Target:
    """The network with the saved parameters."""
    template = network.params if isinstance(network, Target) and params is None else params
    params = trees.rebuild(config["params"], leaves, template)
    names = config["sites"]
    if isinstance(network, Target):
        return Target(network.apply_fn, params, names)
    if isinstance(network, nn.Module):
        return Target.from_flax(network, {"params": params}, names)
    return Target(network, params, names)


def _settings(saved: dict[str, Any], functions: dict[str, Callable]) -> Settings:
    """The settings; a function that they hold must be given."""
    given = dict(saved)
    for name, value in saved.items():
        if isinstance(value, str) and value.startswith("function "):
            if name not in functions:
                raise UserError(
                    f"this was made with {name}={value.removeprefix('function ')}, a function "
                    f"that is not saved: load(..., {name}=...)"
                )
            given[name] = functions[name]
    unknown = sorted(set(functions) - {name for name in given if given[name] != saved.get(name)})
    if unknown:
        raise UserError(f"{unknown[0]!r} was no function when this was saved: leave it out")
    return fields.from_mapping(Settings(), given)


def _example(check: dict[str, Any] | None, config: dict[str, Any]) -> PyTree | None:
    """The saved inputs; None where there are none, or their containers are code."""
    if check is None:
        return None
    inputs = check["inputs"]
    ordered = {str(i): jnp.asarray(inputs[str(i)]) for i in range(len(inputs))}
    try:
        return trees.rebuild(config["example"], ordered)
    except UserError:
        return None


@jax.default_matmul_precision("highest")
def _outputs(target: Target, x: PyTree) -> np.ndarray:
    return np.asarray(quantities("rms", target(x)), np.float32)


def _check_same(target: Target, example: PyTree, expected: Any) -> None:
    """Refuse a network that computes something else than the one that was decomposed."""
    found = _outputs(target.at(example), example)
    expected = np.asarray(expected)
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    if found.shape != expected.shape or not np.allclose(
        found, expected, rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True
    ):
        raise UserError(
            "the network computes something else than the one that was decomposed: on the saved "
            f"inputs it gives {np.ravel(found)[:4]}, the saved outputs are {expected.ravel()[:4]}"
        )
