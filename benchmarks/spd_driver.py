"""Time the training step of goodfire-ai/spd, called from a checkout of it, on a language model.

`benchmarks.against_spd` starts this program in a Python that can import that code. A data loader
passes batches to its `optimize` and records the time (`benchmarks.pacing`).
Letters: B batch, T positions, V vocabulary, d width.
"""

import functools
import itertools
import os
import pathlib
import sys
import tempfile
from typing import Any

import torch
import yaml
from torch import nn
from torch.nn import functional

from benchmarks import pacing, process

# Before the first step, the loop draws a batch for its shape, and at step 0 it logs and evaluates.
_NOT_STEPS = 2


class Block(nn.Module):
    """A pre-norm block of the decoder; its matrices have the names of `benchmarks.transformer`."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        batch, positions, width = h.shape
        split = self.qkv(_norm(h)).view(batch, positions, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(mixed.transpose(1, 2).reshape(h.shape))
        return h + self.down(functional.gelu(self.up(_norm(h)), approximate="tanh"))


class Decoder(nn.Module):
    """The network of `benchmarks.transformer`: tokens [B, T] to logits [B, T, V].

    Attributes:
      sites: Names of the matrices to decompose: as there, except `tokens`, the embedding.
    """

    def __init__(self, sizes: dict[str, int]):
        super().__init__()
        width, vocabulary = sizes["width"], sizes["vocabulary"]
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(sizes["positions"], width)
        self.blocks = nn.ModuleList(Block(width, sizes["heads"]) for _ in range(sizes["layers"]))
        self.unembed = nn.Linear(width, vocabulary, bias=False)
        linear = {name: m for name, m in self.named_modules() if isinstance(m, nn.Linear)}
        self.sites = list(linear)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.1)
        for module in linear.values():
            nn.init.normal_(module.weight, std=module.in_features**-0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.tokens(tokens) + self.positions.weight
        for block in self.blocks:
            h = block(h)
        return self.unembed(_norm(h))


def _norm(h: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(h, h.shape[-1:], eps=1e-5)


def settings(request: dict[str, Any], sites: list[str]) -> dict[str, Any]:
    """Return the settings of a file of spd with this network's sites, without logs and evaluation.

    Args:
      request: Request with `config` (path of the file), `subcomponents` (of every site), `sizes`
        and `precision` (float32, or bfloat16 for PyTorch's automatic casts).
      sites: Names of the matrices to decompose.
    """
    config = yaml.safe_load(pathlib.Path(request["config"]).read_text())
    count = request["subcomponents"]
    never = config["steps"]
    return config | {
        "module_info": [{"module_pattern": name, "C": count} for name in sites],
        "pretrained_model_output_attr": None,
        "autocast_bf16": request["precision"] == "bfloat16",
        "batch_size": request["sizes"]["batch"],
        "eval_batch_size": request["sizes"]["batch"],
        "faithfulness_warmup_steps": 0,
        "train_log_freq": never,
        "eval_freq": never,
        "slow_eval_freq": never,
        "slow_eval_on_first_step": False,
        "n_eval_steps": 1,
        "eval_metric_configs": [],
        "save_freq": None,
        "wandb_project": None,
    }


def main() -> None:
    channel = process.Channel()
    request = channel.receive()
    if request is None:
        return
    with tempfile.TemporaryDirectory() as directory:
        sys.path.insert(0, request["spd"])
        os.environ |= {"MPLBACKEND": "Agg", "WANDB_MODE": "disabled", "SPD_OUT_DIR": directory}
        from spd import run_spd
        from spd.configs import Config

        device = pacing.Device(request["device"])
        torch.set_num_threads(request["threads"])
        sizes = request["sizes"]
        network = Decoder(sizes).to(device.name).eval()
        shape = (sizes["batch"], sizes["positions"])
        draw = functools.partial(torch.randint, sizes["vocabulary"], shape)
        config = Config(**settings(request, network.sites))
        try:
            run_spd.optimize(
                target_model=network,
                config=config,
                device=device.name,
                train_loader=pacing.batches(draw, channel, request["warm"] + _NOT_STEPS, device),
                eval_loader=itertools.repeat(draw()),
                n_eval_steps=config.n_eval_steps,
                out_dir=pathlib.Path(directory),
            )
        except pacing.Finished:
            return


if __name__ == "__main__":
    main()
