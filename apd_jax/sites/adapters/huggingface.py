"""What Hugging Face's models need besides: experts one by one, which torchax can run."""

import warnings

import torch


def use_eager_experts(module: torch.nn.Module) -> None:
    """Let the experts of every Hugging Face model within a module run one by one, in place.

    By default they run by `grouped_mm`, which torchax lacks; eager experts compute the same.

    Args:
      module: a copy, which is changed.
    """
    for name, part in module.named_modules():
        config = getattr(part, "config", None)
        chosen = getattr(config, "_experts_implementation", None)
        if chosen in (None, "eager") or not hasattr(part, "set_experts_implementation"):
            continue
        part.set_experts_implementation("eager")
        warnings.warn(
            f"the experts of {name or type(part).__name__} run by {chosen!r}, which can't be run "
            "in JAX: in the target they run one by one, 'eager'; the module given stays as it is",
            stacklevel=2,
        )
