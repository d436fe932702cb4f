"""Time the training step of the paper's own code, called from a checkout of it.

`benchmarks.against_reference` starts this program in a Python that can import that code. A data
loader passes batches to the reference's `optimize` and records the time (`benchmarks.pacing`).
"""

import os
import sys
from typing import Any

from benchmarks import pacing, process


class _PacedData:
    """A data set of the reference that returns batches while a request is open."""

    def __init__(self, data, batch_size: int, *pace):
        self._data = data
        self._batches = pacing.batches(lambda: data.generate_batch(batch_size), *pace)

    def __len__(self) -> int:
        return len(self._data)

    def generate_batch(self, batch_size: int):
        return next(self._batches)


def _tms(model: dict[str, Any], spd: dict[str, Any], device: str):
    from spd.experiments.tms.models import TMSModel, TMSModelConfig, TMSSPDModel, TMSSPDModelConfig
    from spd.utils import SparseFeatureDataset

    shape = {
        "n_instances": model["instances"],
        "n_features": model["features"],
        "n_hidden": model["hidden"],
        "n_hidden_layers": model["hidden_layers"],
        "device": device,
    }
    target = TMSModel(TMSModelConfig(**shape))
    components = TMSSPDModel(TMSSPDModelConfig(**shape, C=spd["C"], m=spd["m"], bias_val=0.0))
    components.b_final.requires_grad = False
    names = ["linear1", "linear2"]
    names += [f"hidden_layers.{layer}" for layer in range(model["hidden_layers"])]
    data = SparseFeatureDataset(
        n_instances=model["instances"],
        n_features=model["features"],
        feature_probability=model["probability"],
        device=device,
        value_range=(0.0, 1.0),
    )
    return target, components, names, data


def _resid_mlp(model: dict[str, Any], spd: dict[str, Any], device: str):
    from spd.experiments.resid_mlp import models
    from spd.experiments.resid_mlp.resid_mlp_dataset import ResidualMLPDataset

    shape = {
        "n_instances": model["instances"],
        "n_features": model["features"],
        "d_embed": model["d_resid"],
        "d_mlp": model["neurons"][0],
        "n_layers": len(model["neurons"]),
        "act_fn_name": model["activation"],
        "apply_output_act_fn": False,
        "in_bias": False,
        "out_bias": False,
    }
    target = models.ResidualMLPModel(models.ResidualMLPConfig(**shape))
    settings = {**shape, "init_scale": model["init_scale"], "C": spd["C"], "m": spd["m"]}
    components = models.ResidualMLPSPDModel(models.ResidualMLPSPDConfig(**settings))
    for name in ("W_E", "W_U"):
        embedding = getattr(components, name)
        embedding.data.copy_(getattr(target, name).data)
        embedding.requires_grad = False
    layers = range(len(model["neurons"]))
    names = [f"layers.{i}.{part}" for i in layers for part in ("mlp_in", "mlp_out")]
    data = ResidualMLPDataset(
        n_instances=model["instances"],
        n_features=model["features"],
        feature_probability=model["probability"],
        device=device,
        calc_labels=False,
    )
    return target, components, names, data


def main() -> None:
    channel = process.Channel()
    request = channel.receive()
    sys.path.insert(0, request["reference"])
    os.environ |= {"MPLBACKEND": "Agg", "WANDB_MODE": "disabled"}
    import torch
    from spd import run_spd
    from spd.utils import DatasetGeneratedDataLoader

    device = pacing.Device(request["device"])
    torch.set_num_threads(request["threads"])
    config = run_spd.Config(**request["spd"])
    build = {"tms": _tms, "resid_mlp": _resid_mlp}[request["name"]]
    target, components, names, data = build(request["model"], request["spd"], device.name)
    target, components = target.to(device.name), components.to(device.name)
    paced = _PacedData(data, config.batch_size, channel, request["warm"], device)
    try:
        run_spd.optimize(
            model=components,
            config=config,
            device=device.name,
            dataloader=DatasetGeneratedDataLoader(paced, batch_size=config.batch_size),
            target_model=target.eval(),
            param_names=names,
        )
    except pacing.Finished:
        return


if __name__ == "__main__":
    main()
