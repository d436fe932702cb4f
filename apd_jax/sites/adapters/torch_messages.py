"""What a user is told of a torch module that can't be run in JAX."""

import jax
import torch

from apd_jax.errors import UserError
from apd_jax.sites.adapters import torchax_import

_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
_FLOW = (
    ". Control flow, shapes and Python's numbers (if, .item(), .numpy(), .tolist(), y[y > 0]) must "
    "not depend on the values of its tensors: use torch.where or masks, and make arrays of NumPy "
    "tensors by torch.as_tensor"
)
_OUTSIDE = (
    "at a tensor that neither belongs to the module nor was made in forward by torch.tensor, "
    "torch.as_tensor or the like: make it a buffer (register_buffer), an input or a keyword. It "
    "was made by torch.from_numpy, torch.Tensor, torch.vmap or another library, or is kept in a "
    "cache (functools.lru_cache), a global variable or a closure"
)
CACHED = (
    "The module uses a tensor kept in a cache (functools.lru_cache, a global variable) which a run "
    "in JAX has filled: let forward compute the tensor, or make it a buffer. Empty the cache "
    "(.cache_clear()), since torch can't use this tensor either"
)


def explained(error: Exception, module: torch.nn.Module) -> UserError:
    """What went wrong, with the part of the module in which it did."""
    names = {id(part): name for name, part in module.named_modules()}
    where = f"in {type(module).__name__}"
    trace = error.__traceback__
    while trace is not None:
        part = trace.tb_frame.f_locals.get("self")
        if isinstance(part, torch.nn.Module) and names.get(id(part)):
            where = f"in {names[id(part)]} ({type(part).__name__})"
        trace = trace.tb_next
    missing = torchax_import.load().tensor.OperatorNotFound
    if isinstance(error, missing):
        operator = next((word for word in str(error).split() if "::" in word), str(error))
        return UserError(
            f"the operator {operator}, used {where}, is missing in torchax: rewrite that part of "
            "the module with other operators"
        )
    stops = f"the module can't be run in JAX; it stops {where}"
    if "Expect a Tensor or a View" in str(error):
        return UserError(f"{stops} {_OUTSIDE}")
    reason = (str(error).strip().splitlines() or [""])[0]
    return UserError(f"{stops} ({type(error).__name__}: {reason})" + _advice(error))


def _advice(error: Exception) -> str:
    """The way out for the mistakes that are known; of others the error itself must tell."""
    if isinstance(error, jax.errors.UnexpectedTracerError):
        return f". {CACHED}"
    values = isinstance(error, _VALUES) or ".tolist() is not supported" in str(error)
    return _FLOW if values else ""
