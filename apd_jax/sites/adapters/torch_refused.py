"""torch modules that are no networks of fixed weights, each refused by the name of its part."""

from typing import Any

import jax
import jax.numpy as jnp
import torch

from apd_jax.errors import UserError

_config: Any = jax.config  # whose types omit the settings

# Hooks of torch that compute a weight anew at each call.
_HOOKS = ("WeightNorm", "SpectralNorm", "BasePruningMethod")
# Containers do the same in both modes. A slice of one, such as layers[4:], is in training mode even
# if all its modules are in eval mode.
_CONTAINERS = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential)

_COMPILED = "_orig_mod"  # where torch.compile keeps the module that it compiles


def check(module: Any, dtype: torch.dtype | None) -> torch.nn.Module:
    """The module that is to be converted.

    Args:
      module: the object that was passed.
      dtype: dtype to which it will be converted; None to leave its numbers as they are.

    Raises:
      UserError: it is no module, in training mode, without numbers, normalises by the batch, or
        its weights are computed from others, not floating, not finite, sparse, or not of single
        precision.
    """
    if not isinstance(module, torch.nn.Module):
        raise UserError(f"from_torch needs a torch.nn.Module, got a {type(module).__name__}")
    module = getattr(module, _COMPILED, module)
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule) or "eval" in vars(part):  # of torch.export
            raise UserError(
                f"{name or 'the module'} ({type(part).__name__}), made by torch.jit or "
                "torch.export, can't be followed in JAX: pass the module that it was made from"
            )
    _check_floating(module)
    training = [
        name or type(module).__name__
        for name, part in module.named_modules()
        if part.training and type(part) not in _CONTAINERS
    ]
    if training:
        raise UserError(
            f"the module is in training mode ({', '.join(training[:3])}), in which dropout is "
            "random and batch norm uses batch statistics: call module.eval() first"
        )
    _check_statistics(module)
    _check_computed(module)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        _check_numbers(name, tensor)
    for name, tensor in module.named_parameters():
        _check_precision(name, tensor, dtype)
        if not torch.isfinite(tensor.detach()).all():
            raise UserError(f"{name} holds NaN or infinity: retrain the network")
    if not dict(module.named_parameters()):
        raise UserError(f"{type(module).__name__} has no parameters: there is nothing to decompose")
    return module


def prefix(module: torch.nn.Module) -> str:
    """What a module that was passed writes before the names of the one that `check` gives."""
    return f"{_COMPILED}." if hasattr(module, _COMPILED) else ""


def _check_statistics(module: torch.nn.Module) -> None:
    """Refuse batch norm without statistics of its own."""
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.running_mean is None:
            raise UserError(
                f"{name or 'the module'} ({type(part).__name__}) has track_running_stats=False, so "
                "that it uses batch statistics in eval mode, too, and the output of an example "
                "depends on the others: give it statistics, or use another norm"
            )


def sequence_first(module: torch.nn.Module) -> list[str]:
    """Parts whose inputs have the positions before the batch, torch's default."""
    kinds = (torch.nn.RNNBase, torch.nn.MultiheadAttention)
    return [
        f"{name or 'the module'} ({type(part).__name__})"
        for name, part in module.named_modules()
        if isinstance(part, kinds) and not part.batch_first
    ]


def _check_computed(module: torch.nn.Module) -> None:
    """Refuse weights that are computed from other parameters at each call."""
    for name, part in module.named_modules():
        names = list(getattr(part, "parametrizations", {}))
        for hook in part._forward_pre_hooks.values():
            if any(cls.__name__ in _HOOKS for cls in type(hook).__mro__):
                names.append(getattr(hook, "name", getattr(hook, "_tensor_name", "weight")))
        if names:
            full = ".".join(filter(None, (name, names[0])))
            where = f"module.get_submodule({name!r})" if name else "module"
            raise UserError(
                f"{full} is not a parameter but is computed from others at each call, by "
                "weight_norm or another parametrization: turn it into one, "
                f"torch.nn.utils.parametrize.remove_parametrizations({where}, {names[0]!r}), or "
                "remove_weight_norm, remove_spectral_norm or prune.remove where those were used"
            )


def _check_numbers(name: str, tensor: torch.Tensor) -> None:
    """Refuse tensors that hold no numbers, or not all of them."""
    if isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin) or tensor.is_meta:
        raise UserError(f"{name} has no numbers yet: load the weights, or run the module once")
    if tensor.is_quantized:
        raise UserError(f"{name} is {tensor.dtype}, not floating: replace it by its .dequantize()")
    if tensor.layout is not torch.strided:
        raise UserError(f"{name} is sparse ({tensor.layout}): replace it by its .to_dense()")


def _check_precision(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> None:
    """Refuse parameters that JAX would round; of buffers, outputs tell whether it matters."""
    wide = _config.jax_enable_x64 and tensor.dtype == torch.float64
    if tensor.is_floating_point() and tensor.dtype != torch.float32 and not wide and not dtype:
        raise UserError(
            f"{name} is {str(tensor.dtype).removeprefix('torch.')}: components are decomposed in "
            'single precision; from_torch(..., dtype="float32") converts a copy of the module'
        )


def _check_floating(module: torch.nn.Module) -> None:
    """Refuse weights that are quantised: parameters of whole numbers, or packed ones."""
    for name, tensor in module.named_parameters():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{name} is {kind}, not floating: load the module without quantisation")
    for name, part in module.named_modules():
        if hasattr(part, "_packed_params"):
            raise UserError(
                f"the weights of {name or type(part).__name__} ({type(part).__name__}) are packed, "
                "not floating: load the module without quantisation"
            )


def chosen_dtype(dtype: Any) -> torch.dtype | None:
    """A dtype of torch from one of any library or a name; None stays None.

    Raises:
      UserError: it is neither float32 nor, where JAX allows it, float64.
    """
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    try:
        name = jnp.dtype(name).name
    except TypeError:
        name = str(dtype)
    allowed = ("float32", "float64") if _config.jax_enable_x64 else ("float32",)
    if name not in allowed:
        raise UserError(f"dtype must be one of {allowed} or None, got {dtype!r}")
    return getattr(torch, name)
