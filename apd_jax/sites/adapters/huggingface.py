"""Hugging Face's mixtures of experts in a form that can be traced.

Their own forms take the tokens of every expert out of the batch, whose number depends on the
values, or use `grouped_mm`, which torchax lacks. Letters: N tokens, E experts, K experts a token.
"""

import types
import warnings

import torch

_MARKS = ("_apply_gate", "is_transposed", "has_gate", "down_proj")


def run_every_expert(module: torch.nn.Module) -> None:
    """Let Hugging Face's experts run on all tokens, weighted by 0 where they are not chosen.

    Each expert's matrix is then a block of one stacked product. What they compute is the same.

    Args:
      module: a copy, which is changed.
    """
    found = {name: m for name, m in module.named_modules() if all(hasattr(m, s) for s in _MARKS)}
    for part in found.values():
        part.forward = types.MethodType(_every_expert, part)
    if found:
        warnings.warn(
            f"the experts {', '.join(found)} choose their tokens by the values, which can't be "
            "traced: in the target every expert runs on all tokens, weighted by 0 where it is not "
            "chosen. Outputs are the same; the module given stays as it is",
            stacklevel=2,
        )


def _every_expert(
    self: torch.nn.Module,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """`forward` of experts: hidden_states [N, d], top_k_index and top_k_weights [N, K]."""
    experts = torch.arange(self.down_proj.shape[0], device=top_k_index.device)
    chosen = (top_k_index[..., None] == experts).to(top_k_weights.dtype)  # [N, K, E]
    weights = (chosen * top_k_weights[..., None]).sum(dim=1)
    name = "gate_up_proj" if self.has_gate else "up_proj"
    hidden = _product(self, hidden_states.expand(len(experts), *hidden_states.shape), name)
    hidden = self._apply_gate(hidden) if self.has_gate else self.act_fn(hidden)
    outputs = _product(self, hidden, "down_proj")  # [E, N, d]
    if self.has_post_expert_norm:
        outputs = self.post_expert_norm(outputs)
    total = (outputs * weights.T[..., None].to(outputs.dtype)).sum(dim=0)
    return total.to(hidden_states.dtype)


def _product(experts: torch.nn.Module, x: torch.Tensor, name: str) -> torch.Tensor:
    """Every expert's linear map of [E, N, d_in]."""
    weight = getattr(experts, name)
    y = torch.bmm(x, weight if experts.is_transposed else weight.transpose(1, 2))
    return y + getattr(experts, name + "_bias")[:, None] if experts.has_bias else y
