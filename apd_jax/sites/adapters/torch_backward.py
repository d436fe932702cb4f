"""Derivatives of torch that JAX, which follows the forward pass alone, does not have.

They come from backward passes of `torch.autograd.Function`, and from values that are computed
without gradients, in a block of `torch.no_grad()` or through `.data`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from apd_jax.errors import UserError
from apd_jax.sites.adapters import torch_arguments

PyTree = Any
_TOLERANCE = 1e-3
_ROUNDING = 1e-5


def check(
    module: torch.nn.Module,
    call: tuple[tuple, dict[str, Any]],
    pick: Callable[[Any], PyTree],
    ours: Callable[[Mapping[str, jax.Array]], PyTree],
    params: Mapping[str, jax.Array],
    names: Collection[str],
) -> None:
    """Refuse a backward pass that is not the derivative of its forward pass.

    Only derivatives by parameters that are decomposed matter: that by the threshold of a JumpReLU
    may be a surrogate.

    Derivatives are compared only if the module has backward passes of its own, or stops gradients.
    In other modules torch's derivatives may differ on purpose: that by the padding row of an
    embedding is 0. Where gradients are stopped, parameters without any derivative in torch, as
    those of a frozen part, may have one in JAX.

    Args:
      module: the module, which is left as it is.
      call: positional arguments and keywords of `forward`.
      pick: the outputs of what `forward` returns.
      ours: parameters -> outputs of the converted network for these arguments.
      params: the values of its parameters.
      names: those of the parameters that are decomposed.

    Raises:
      UserError: a derivative differs; it names the class and the parameter.
    """
    found, stops, theirs = _of_torch(module, call, pick)
    if not (found or stops):
        return
    real = {name: params[name] for name in params if name in names}
    real = {name: a for name, a in real.items() if jnp.issubdtype(a.dtype, jnp.floating)}
    mine = jax.jit(jax.grad(lambda p: sum(map(_total, jax.tree.leaves(ours({**params, **p}))))))
    derivatives = jax.tree.map(np.asarray, mine(real))
    pairs = {name: (derivatives[name], theirs[name]) for name in real if name in theirs}
    # Where a derivative is 0, as by the bias of keys in attention, both have rounding alone.
    rounding = _ROUNDING * max((_largest(a) for pair in pairs.values() for a in pair), default=0.0)
    for name, (a, b) in pairs.items():
        if not found and not b.any():
            continue
        both = np.isfinite(a) | np.isfinite(b)
        if _largest(np.subtract(a, b, where=both, out=np.zeros(a.shape))) > (
            _TOLERANCE * _largest(b) + rounding
        ):
            reason = (
                f"{', '.join(found)} (torch.autograd.Function) has a backward that is not the "
                "derivative of its forward, and JAX follows the forward alone. Write it with "
                "operators"
                if found
                else "forward stops gradients in a block of torch.no_grad() or through .data, "
                "which JAX does not see. Use .detach()"
            )
            raise UserError(
                f"the derivative by {name} is not torch's: {reason}, such as "
                "y + (f(y) - y).detach() for straight-through rounding"
            )


def _of_torch(
    module: torch.nn.Module, call: tuple[tuple, dict[str, Any]], pick: Callable
) -> tuple[list[str], bool, dict[str, np.ndarray]]:
    """What a module has of its own in its derivatives, and torch's derivatives by its parameters.

    Those by embeddings with a row for padding are left out: torch does not train it, but outputs
    depend on it.

    Returns:
      The classes of its backward passes, whether it stops gradients, and the derivatives.
    """
    leaves = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
    tables = torch.nn.Embedding | torch.nn.EmbeddingBag
    padded = [
        m.weight for m in module.modules() if isinstance(m, tables) and m.padding_idx is not None
    ]
    device = next(module.parameters()).device.type
    try:
        watched = _Stops()
        with torch.enable_grad(), torch.autocast(device, enabled=False), watched:
            outputs = pick(torch.func.functional_call(module, leaves, *call))
            total: Any = sum(map(_total, jax.tree.leaves(outputs)))
            found = sorted(set(_own(getattr(total, "grad_fn", None))))
            if not (found or watched.any):
                return [], False, {}
            gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    except Exception:  # whatever a module says that has no derivative in torch
        return [], False, {}
    theirs = {}
    for (name, parameter), gradient in zip(module.named_parameters(), gradients, strict=True):
        if not any(parameter is weight for weight in padded):
            filled = torch.zeros_like(parameter) if gradient is None else gradient
            theirs[name] = np.asarray(torch_arguments.as_array(filled))
    return found, watched.any, theirs


class _Stops(torch.overrides.TorchFunctionMode):
    """Sees whether something that has a gradient is used where none is recorded."""

    any = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if not torch.is_grad_enabled() or func == torch.Tensor.data.__get__:
            leaves = jax.tree.leaves((args, kwargs))
            given = any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves)
            self.any |= given and isinstance(found, torch.Tensor) and found.is_floating_point()
        return found


def _largest(array: Any) -> float:
    """The largest absolute value; infinity where one is NaN."""
    return float(np.nan_to_num(np.abs(array), nan=np.inf).max(initial=0.0))


def _total(output: Any) -> Any:
    """A number that depends on every entry of an output, of torch or JAX, in another way."""
    if isinstance(output, torch.Tensor):
        if not output.is_floating_point():
            return 0.0
        scales = torch.as_tensor(_scales(output.shape), dtype=output.dtype, device=output.device)
        return torch.where(torch.isfinite(output), output, 0.0).mul(scales).sum()
    if not jnp.issubdtype(output.dtype, jnp.floating):
        return 0.0
    return jnp.sum(jnp.where(jnp.isfinite(output), output, 0.0) * _scales(output.shape))


def _scales(shape: tuple[int, ...]) -> np.ndarray:
    return (1 + np.cos(np.arange(np.prod(shape, dtype=int))) / 2).reshape(shape).astype("float32")


def _own(node: Any) -> Iterator[str]:
    """Names of the classes of a graph's backward passes that are not torch's."""
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            yield type(node).__name__.removesuffix("Backward")
        waiting.extend(following for following, _ in node.next_functions)
