"""Golden cases: small networks with the numbers that the paper's own code gives for them."""

import functools
import json
import pathlib
import types

import jax.numpy as jnp
import numpy as np

from apd_jax.components import Factors
from apd_jax.objective.coefficients import Coefficients
from apd_jax.objective.objective import Objective
from apd_jax.sites import Target
from apd_jax.studies.resid_mlp.network import ResidualMLP
from apd_jax.studies.tms.network import TMS

CASES = ("tms", "tms_hidden", "resid_mlp_1layer", "resid_mlp_2layer")
_DATA = pathlib.Path(__file__).parent / "data"


def _site_names(meta):
    """Names of the sites here, by their names in the files."""
    if meta["kind"] == "tms":
        hidden = {f"hidden_layers.{i}": f"hidden_{i}/kernel" for i in range(meta["L"])}
        return {"linear1": "linear1/kernel"} | hidden
    return {
        f"layers.{i}.{part}": f"layers_{i}/{part}/kernel"
        for i in range(meta["L"])
        for part in ("mlp_in", "mlp_out")
    }


def _network(meta, data, names):
    weights = {ours: jnp.array(data[f"target/{theirs}/W"]) for theirs, ours in names.items()}
    if meta["kind"] == "tms":
        params = {site.removesuffix("/kernel"): {"kernel": w} for site, w in weights.items()}
        params["b_final"] = jnp.array(data["fixed/b_final"])
        return TMS(meta["F"], meta["H"], meta["L"]), params
    params = {"W_E": jnp.array(data["fixed/W_E"]), "W_U": jnp.array(data["fixed/W_U"])}
    for layer in range(meta["L"]):
        block = {
            part: {"kernel": weights[f"layers_{layer}/{part}/kernel"]}
            for part in ("mlp_in", "mlp_out")
        }
        if meta["bias"]:
            block["mlp_in"]["bias"] = jnp.array(data[f"fixed/layers.{layer}.bias1"])
            block["mlp_out"]["bias"] = jnp.array(data[f"fixed/layers.{layer}.bias2"])
        params[f"layers_{layer}"] = block
    module = ResidualMLP(
        meta["F"], meta["D"], (meta["H"],) * meta["L"], meta["act"], meta["bias"], meta["bias"]
    )
    return module, params


@functools.cache
def load(case):
    """One case: `meta`, `data`, `target`, `components`, `x`, `sites` and the `objective`."""
    data = dict(np.load(_DATA / f"{case}.npz"))
    meta = json.loads(str(data["meta"]))
    names = _site_names(meta)
    module, params = _network(meta, data, names)
    residual = meta["kind"] != "tms"
    sites = tuple(names.values())
    hidden = tuple(s for s in sites if s.endswith("mlp_in/kernel")) if residual else sites
    objective = Objective(
        coefficients=Coefficients(**meta["coeffs"]),
        topk=float(data["k/batch"]),
        schatten_p=meta["schatten_p"],
        hidden_sites=hidden,
        hidden_activation="relu" if residual else "identity",
    )
    case = types.SimpleNamespace(meta=meta, data=data, names=names, objective=objective)
    case.x = jnp.array(data["x"])
    case.target = Target.from_flax(module, {"params": params}, sites, inputs=case.x)
    case.components = factors(data, names, "components")
    return case


def factors(data, names, prefix):
    """Stored factors (or gradients) under a prefix, as components."""
    return {
        ours: Factors.from_uv(
            jnp.array(data[f"{prefix}/{theirs}/U"]), jnp.array(data[f"{prefix}/{theirs}/V"])
        )
        for theirs, ours in names.items()
    }
