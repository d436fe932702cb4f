"""Loading of saved decompositions: the network is code and given, the rest is read and checked."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax

from apd_jax import config_fields
from apd_jax.components import Factors
from apd_jax.decomposition import function_identity
from apd_jax.decomposition.odd_leaves import unpacked
from apd_jax.decomposition.result import Decomposition
from apd_jax.decomposition.rounding import tolerance
from apd_jax.errors import UserError
from apd_jax.objective import gates
from apd_jax.runtime import export, trees
from apd_jax.sites import PyTree, Target, adapters
from apd_jax.training.config import Settings

Network = Any  # a model of a known library, a Target or a function (params, x) -> output


def load(
    directory: str | os.PathLike[str],
    network: Network,
    *,
    params: PyTree | None = None,
    inputs: PyTree | None = None,
    **functions: Callable,
) -> Decomposition:
    """Read what `Decomposition.save` wrote.

    Args:
      directory: the saved decomposition.
      network: the network itself, which is code and not saved: the Flax, Equinox or torch model, a
        `Target` made as for `decompose`, or the function `(params, x) -> output`. Parameters
        and what else was fixed of a model (other collections, buffers, keywords) may have any
        values: the saved values replace its own.
      params: parameters of the same types and shapes, needed where these are kept in NamedTuples,
        dataclasses or other classes and `network` is no `Target`.
      inputs: inputs of the network, of any values, needed where these are kept in such classes: the
        network is checked on a few that were saved.
      **functions: settings that were functions, such as `metric=`, which are not saved either.

    Raises:
      UserError: nothing was saved there; parameters or outputs of the network are not those of the
        one that was decomposed, or can't be compared without `inputs`; a function is missing.
      runtime.checkpoint.CheckpointError: no complete saved decomposition is there.
    """
    if not callable(network) and adapters.adapter_of(network) is None:
        raise UserError(
            "load needs the network itself, a Flax, Equinox or torch model, a Target or the "
            f"function (params, x) -> output, got a {type(network).__name__}; parameters are saved"
        )
    saved = export.load_components(directory)
    config = saved.config
    missing = {"paths", "params", "sites", "settings"} - set(config)
    if missing:
        raise UserError(
            f"{directory} holds components that Decomposition.save did not write: its config has "
            f"no {sorted(missing)}; runtime.export.load_components reads them"
        )
    check = saved.check or {}
    example = _example(check, config, inputs) if "outputs" in check else None
    odd = config.get("odd_params", {})
    leaves = {
        path: unpacked(saved.target, odd, path) if path in odd else saved.target[path]
        for path in config["paths"]
    }
    target = _target(network, params, config, leaves, check.get("state", {}))
    if example is not None:
        _check_same(target, example, check["outputs"])
    factors = {site: Factors.from_uv(f["U"], f["V"]) for site, f in saved.components.items()}
    components = {site: factors[site] for site in config["sites"]}
    return Decomposition(
        target,
        gates.of_saved(components, check.get("gates")),
        _settings(config["settings"], functions),
        config["history"],
        example,
        config["losses"],
        config["moves"],
        config.get("pilots", ()),
    )


def _target(
    network: Network, params: PyTree | None, config: Any, leaves: Any, state: dict[str, Any]
) -> Target:
    """The network with the saved parameters, and with the rest of it that was saved."""
    saved = config.get("network")
    adapter = adapters.adapter_of(network)
    apply_fn: Any
    if isinstance(network, Target):
        apply_fn, template = network.apply_fn, network.params
    elif adapter is not None:
        apply_fn, template = adapter.restored(network, saved or {})
    else:
        apply_fn, template = network, None
    values = trees.rebuild(config["params"], leaves, template if params is None else params)
    if saved is not None and hasattr(apply_fn, "with_state"):
        ordered = _in_order(state, config.get("odd_state", {}))
        like = apply_fn.state if trees.code(saved["state"]) else None
        apply_fn = apply_fn.with_state(trees.rebuild(saved["state"], ordered, like))
    return Target(apply_fn, values, config["sites"])


def _settings(saved: dict[str, Any], functions: dict[str, Callable]) -> Settings:
    """The settings; a function that they hold must be given."""
    given = dict(saved)
    for name, value in saved.items():
        if isinstance(value, str) and value.startswith("function "):
            if functions.get(name) is None:
                raise UserError(
                    f"this decomposition was made with {name}={value.removeprefix('function ')}, "
                    f"a function that is not saved: load(..., {name}=...)"
                )
            given[name] = functions[name]
    unknown = sorted(set(functions) - {name for name in given if given[name] != saved.get(name)})
    if unknown:
        raise UserError(f"{unknown[0]!r} was not a function when this was saved: leave it out")
    return config_fields.from_mapping(Settings(), given)


def _example(check: dict[str, Any], config: dict[str, Any], inputs: PyTree | None) -> PyTree:
    """The saved inputs, in containers like those of `inputs` where these are code."""
    leaves = _in_order(check.get("inputs", {}), config.get("odd_inputs", {}))
    code = trees.code(config["example"])
    if code and inputs is None:
        raise UserError(
            f"the inputs that the network is checked on are kept in a {code}, which is code and "
            "was not saved: call load(..., inputs=x) with inputs of the network, of any values"
        )
    if inputs is None:
        return trees.rebuild(config["example"], leaves)
    tree: Any = jax.tree.structure(inputs)
    if tree.num_leaves != len(leaves):
        raise UserError(
            f"inputs= must be like those that were saved, of {len(leaves)} arrays; got {tree}"
        )
    return jax.tree.unflatten(tree, leaves.values())


def _in_order(arrays: Mapping[str, Any], odd: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Leaves that were saved by their numbers, those that are odd included."""
    return {str(i): unpacked(arrays, odd, str(i)) for i in range(len(arrays.keys() | odd.keys()))}


def _check_same(target: Target, example: PyTree, expected: Any) -> None:
    """Refuse a network that computes something else than the one that was decomposed."""
    found = function_identity.given(target.at(example), example)["network"]
    difference = function_identity.difference(found, expected, tolerance(target, example))
    if difference:
        raise UserError(
            "the network does not compute what the decomposed network did: on the saved "
            f"inputs {difference}. A model in training mode, before model.eval(), also computes "
            "something else"
        )
