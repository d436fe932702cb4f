"""A torch module as a function of its tensors, which leaves the module itself alone.

The module is copied without its numbers. At each call a fresh copy is made in which JAX arrays
stand in place of all tensors, wherever they are kept, so that nothing which the network does
to itself outlives the call, and threads don't meet.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import torch
from jax.interpreters import partial_eval

from apd_jax.errors import UserError, about
from apd_jax.sites.adapters import torch_arguments, torch_environment, torch_messages

_DEEPCOPY = torch.Tensor.__deepcopy__


@dataclasses.dataclass(frozen=True, eq=False)
class Skeleton:
    """A module without numbers.

    Attributes:
      module: the copy; its tensors hold nothing.
      tensors: the parameters and all other tensors of the copy by name.
    """

    module: torch.nn.Module
    tensors: dict[str, torch.Tensor]

    def run(self, arrays: Mapping[str, jax.Array], x: Any, keywords: dict, pick: Callable) -> Any:
        """Outputs with `arrays` in place of all tensors.

        Args:
          arrays: all parameters and other tensors by name.
          x: a tensor, a tuple of tensors for positions, or a dict for keywords.
          keywords: more of them.
          pick: the outputs of what `forward` returns.

        Raises:
          UserError: an operator is missing in torchax, or the module can't be run in JAX.
        """
        memo = {id(self.tensors[n]): torch_environment.as_tensor(a) for n, a in arrays.items()}
        module = _copied(self.module, memo)
        args, own = torch_arguments.arguments(jax.tree.map(torch_environment.as_tensor, x))
        keywords = torch_arguments.map_arrays(torch_environment.as_tensor, keywords)
        try:
            with torch_environment.running():
                return torch_environment.to_jax(pick(module(*args, **own, **keywords)))
        except UserError:
            raise
        except Exception as error:  # whatever operators say to what they can't do
            raise torch_messages.explained(error, module) from error


_Arrays = dict[str, jax.Array]
_KEPT = "tensor "  # and a number: the name of a tensor that is no parameter or buffer


def split(module: torch.nn.Module) -> tuple[Skeleton, _Arrays, _Arrays]:
    """A module without numbers, its parameters, and its other tensors, copied, by name.

    Raises:
      UserError: it can't be copied.
    """
    params: _Arrays = {}
    fixed: _Arrays = {}
    tensors: dict[str, torch.Tensor] = {}
    memo: dict[int, Any] = {}

    def take(name: str, tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
        arrays = params if name in named else fixed
        with about(name):
            arrays[name] = torch_arguments.as_array(tensor)
        empty = torch.empty_like(tensor.detach(), device="meta")
        if isinstance(tensor, torch.nn.Parameter):
            empty = torch.nn.Parameter(empty, requires_grad=False)
        tensors[name] = memo[id(tensor)] = empty
        return empty

    named = dict(module.named_parameters())
    for name, tensor in {**named, **dict(module.named_buffers())}.items():
        take(name, tensor, memo)
    with _Copying(lambda tensor, memo: take(f"{_KEPT}{len(tensors)}", tensor, memo)):
        return Skeleton(_copied(module, memo), tensors), params, fixed


class _Copying(torch.overrides.TorchFunctionMode):
    """Copies all tensors that a module holds, anywhere, by a given function."""

    def __init__(self, copied: Callable):
        super().__init__()
        self._copied = copied

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is _DEEPCOPY:
            return self._copied(*args)
        return func(*args, **(kwargs or {}))


def kept(tensors: Mapping[str, Any]) -> list[str]:
    """Names of those that are neither parameters nor buffers, such as kept activations."""
    return [name for name in tensors if name.startswith(_KEPT)]


def idle(run: Callable[[Mapping[str, jax.Array]], Any], tensors: _Arrays) -> frozenset[str]:
    """Names of kept tensors on which outputs don't depend, since `forward` computes them anew.

    Args:
      run: tensors that are no parameters -> outputs.
      tensors: these tensors by name.
    """
    names = kept(tensors)
    if not names:
        return frozenset()
    outputs = jax.make_jaxpr(lambda values: run({**tensors, **values}))
    jaxpr = outputs({name: tensors[name] for name in names}).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return frozenset(name for name, known in zip(sorted(names), used, strict=True) if not known)


def _copied(module: torch.nn.Module, memo: dict[int, Any]) -> torch.nn.Module:
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # of files, locks, generators, tensors with a history
        raise UserError(
            f"{type(module).__name__} can't be copied ({type(error).__name__}: {error}), and the "
            "original is never changed: remove what can't be copied, such as open files"
        ) from error


def _without_history(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    """A copy; of what was computed with gradients, such as kept activations, the numbers alone."""
    return _DEEPCOPY(tensor, memo) if tensor.is_leaf else tensor.detach().clone()


def sharing_parameters(module: torch.nn.Module) -> torch.nn.Module:
    """A copy with the same parameters, in which everything else may change.

    Those that were made in `torch.inference_mode`, which can't have derivatives, are copied too.
    """
    shared = [tensor for tensor in module.parameters() if not tensor.is_inference()]
    with _Copying(_without_history):
        return _copied(module, {id(tensor): tensor for tensor in shared})


def converted(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A copy of a module in another precision.

    Raises:
      UserError: it can't be copied.
    """
    with _Copying(_without_history):
        return _copied(module, {}).to(dtype)
