"""Small random modules of torch and Hugging Face, with what is to be found in them.

Letters: N examples, T positions.
"""

import dataclasses
from typing import Any

import torch
import transformers
from torch import nn

from zoo.network import Table

N, T, VOCABULARY = 12, 4, 11
TORCH = Table()
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_GROUPED = _SIZES | {"num_key_value_heads": 1}


@dataclasses.dataclass(frozen=True)
class TorchModel:
    """One entry.

    Attributes:
      module: in eval mode.
      inputs: [N, ...] tensors.
      sites: how many matrices can be decomposed.
      options: of `Target.from_torch`.
    """

    module: nn.Module
    inputs: Any
    sites: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def model(module: nn.Module, inputs: Any, sites: int, **options: Any) -> TorchModel:
    """An entry with weights drawn anew, so large that no site is lost in rounding."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            size = 1.0 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(size * (0.2 + torch.randn(parameter.shape, generator=draw)))
    return TorchModel(module.eval(), inputs, sites, options)


def drawn(*shape: int) -> torch.Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def tokens() -> torch.Tensor:
    """Whole numbers below `VOCABULARY`, [N, T]."""
    return torch.randint(VOCABULARY, (N, T), generator=torch.Generator().manual_seed(1))


def language_model(module: nn.Module, sites: int) -> TorchModel:
    """A model of tokens with logits."""
    return model(module, {"input_ids": tokens()}, sites, output="logits", use_cache=False)


@TORCH.entry
def gpt2() -> TorchModel:
    """The embedding is the decoder, too."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=2, n_positions=16, n_inner=6
    )
    return language_model(transformers.GPT2LMHeadModel(config), 5)


@TORCH.entry
def gpt_neox() -> TorchModel:
    config = transformers.GPTNeoXConfig(**_SIZES)
    return language_model(transformers.GPTNeoXForCausalLM(config), 6)


@TORCH.entry
def llama() -> TorchModel:
    return language_model(transformers.LlamaForCausalLM(transformers.LlamaConfig(**_GROUPED)), 9)


@TORCH.entry
def qwen3() -> TorchModel:
    config = transformers.Qwen3Config(**_GROUPED, head_dim=4)
    return language_model(transformers.Qwen3ForCausalLM(config), 9)


@TORCH.entry
def gemma() -> TorchModel:
    config = transformers.GemmaConfig(**_GROUPED, head_dim=4)
    return language_model(transformers.GemmaForCausalLM(config), 8)


@TORCH.entry
def mixtral() -> TorchModel:
    sizes = _GROUPED | {"intermediate_size": 8}  # what torch's grouped_mm takes
    config = transformers.MixtralConfig(**sizes, num_local_experts=3, num_experts_per_tok=2)
    return language_model(transformers.MixtralForCausalLM(config), 9)


@TORCH.entry
def mamba() -> TorchModel:
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=4, state_size=2, num_hidden_layers=1, conv_kernel=2
    )
    return language_model(transformers.MambaForCausalLM(config), 6)


@TORCH.entry
def bert_with_padding() -> TorchModel:
    inputs = {"input_ids": tokens(), "attention_mask": torch.ones(N, T, dtype=torch.int64)}
    inputs["attention_mask"][::2, 2:] = 0
    module = transformers.BertForSequenceClassification(transformers.BertConfig(**_SIZES))
    return model(module, inputs, 9, output="logits")


@TORCH.entry
def vit() -> TorchModel:
    sizes = {k: v for k, v in _SIZES.items() if "_" in k and "token" not in k}
    del sizes["vocab_size"], sizes["max_position_embeddings"]
    config = transformers.ViTConfig(**sizes, image_size=4, patch_size=2, num_channels=2)
    inputs = {"pixel_values": drawn(N, 2, 4, 4)}
    return model(transformers.ViTForImageClassification(config), inputs, 8, output="logits")


@TORCH.entry
def resnet_with_batch_statistics() -> TorchModel:
    config = transformers.ResNetConfig(
        num_channels=2, embedding_size=2, hidden_sizes=[2, 4], depths=[1, 1], layer_type="basic"
    )
    module = transformers.ResNetForImageClassification(config)
    inputs = {"pixel_values": drawn(N, 2, 8, 8)}
    module(**inputs)  # in training mode: statistics of this batch
    return model(module, inputs, 7, output="logits")


@TORCH.entry
def lstm() -> TorchModel:
    return model(nn.LSTM(3, 4, batch_first=True), drawn(N, T, 3), 2, output=0)


@TORCH.entry
def transformer_encoder_layer() -> TorchModel:
    return model(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), drawn(N, T, 4), 4)


@TORCH.entry
def convolutions() -> TorchModel:
    module = nn.Sequential(
        nn.Conv1d(3, 4, 3, padding=1),
        nn.BatchNorm1d(4),
        nn.GELU(),
        nn.Unflatten(1, (2, 2)),
        nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1),
    )
    return model(module, drawn(N, 3, T), 2)


class _Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 4)
        self.between = nn.Linear(4, 4)
        self.decode = nn.Linear(4, VOCABULARY, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, ids):
        return self.decode(torch.tanh(self.between(self.embed(ids))))


@TORCH.entry
def tied_weights() -> TorchModel:
    return model(_Tied(), tokens(), 2)
