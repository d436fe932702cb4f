"""torch's own run of a module, with which the converted one is compared; the module stays as it is.

Letters: B batch.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import torch

from apd_jax.errors import UserError
from apd_jax.sites.adapters import torch_arguments

PyTree = Any


def runner(
    module: torch.nn.Module,
    params: Mapping[str, jax.Array],
    given: PyTree,
    keywords: dict[str, Any],
    pick: Callable[[Any], PyTree],
) -> Callable[[np.ndarray], PyTree]:
    """`rows -> outputs` of the module itself on these rows of the inputs, as JAX arrays.

    Args:
      module: a copy, which may share its parameters with the caller's module.
      params: the values of its parameters.
      given: the inputs, tensors [B, ...].
      keywords: keywords of `forward`, with tensors for arrays.
      pick: the outputs of what `forward` returns.

    Returns:
      The function. It raises UserError if torch can't run the module, or if `forward` changes a
      parameter, whose values are then put back.
    """

    def run(rows: np.ndarray) -> PyTree:
        batch = jax.tree.map(lambda leaf: leaf[torch.as_tensor(rows, device=leaf.device)], given)
        args, own_keywords = torch_arguments.arguments(batch)
        fixed = torch_arguments.map_arrays(torch.clone, keywords)
        what = f"{type(module).__name__} itself can't be run"
        try:
            # The caller may be in a block of mixed precision, of which JAX knows nothing.
            device = next(module.parameters()).device.type
            with torch.no_grad(), torch.autocast(device, enabled=False), _unchanged(module, params):
                result = module(*args, **own_keywords, **fixed)
                what = "output= can't be taken of what forward returns"
                result = pick(result)
        except UserError:
            raise
        except Exception as error:  # whatever a module says to inputs that it does not take
            reason = (str(error).strip().splitlines() or [""])[0]
            raise UserError(
                f"{what} on a batch of {len(rows)} of the inputs ({type(error).__name__}: {reason})"
                f"{_held(module)}"
            ) from error
        return jax.tree.map(torch_arguments.as_array, result)

    return run


def _held(module: torch.nn.Module) -> str:
    """What to do where functions of a copy, such as its hooks, hold the module it was made of."""
    own = set(module.modules())
    for name, part in module.named_modules():
        for value in vars(part).values():
            for function in value.values() if isinstance(value, dict) else [value]:
                for cell in getattr(function, "__closure__", None) or ():
                    with contextlib.suppress(ValueError):  # an empty cell
                        held = cell.cell_contents
                        if isinstance(held, torch.nn.Module) and held not in own:
                            return (
                                f". A copy was run, and a function or hook of {name or 'it'} holds "
                                f"a {type(held).__name__} that was not copied: make it a method, "
                                "as in register_forward_hook(self.keep)"
                            )
    return ""


@contextlib.contextmanager
def _unchanged(module: torch.nn.Module, params: Mapping[str, jax.Array]) -> Iterator[None]:
    """Put back the values of parameters that are changed in this block.

    Raises:
      UserError: a parameter was changed, which is named.
    """
    own = {name: parameter for name, parameter in module.named_parameters() if name in params}
    memory = {name: parameter.data for name, parameter in own.items()}
    changed = []
    try:
        yield
    finally:
        for name, parameter in own.items():
            # Values are compared, since torch doesn't count changes of `.data`.
            moved = parameter.data_ptr() != memory[name].data_ptr()
            tensors = [memory[name], *([parameter.data] if moved else [])]
            if all(_has(params[name], tensor) for tensor in tensors):
                continue
            changed.append(name)
            parameter.data = memory[name]
            parameter.data.copy_(torch.from_numpy(np.array(params[name])))
    if changed:
        raise UserError(
            f"forward changes the parameter {changed[0]} in place, as .clamp_() does, and "
            "torch.nn.Embedding with max_norm: the network has no fixed weights. Change them "
            "before, and leave that out of forward (module.max_norm = None). The module has its "
            "values back"
        )


def _has(values: jax.Array, tensor: torch.Tensor) -> bool:
    numbers = tensor.cpu().numpy()
    return np.array_equal(numbers.astype(values.dtype, copy=False), np.asarray(values))
