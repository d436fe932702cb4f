"""torch modules in eval mode, run in JAX operator by operator, compared with torch's own output.

Letters: B batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
import torch

from apd_jax.errors import UserError
from apd_jax.sites import given_arrays
from apd_jax.sites.adapters import (
    huggingface,
    torch_arguments,
    torch_backward,
    torch_compare,
    torch_copy,
    torch_messages,
    torch_own,
    torch_refused,
)
from apd_jax.sites.adapters.fixed import (
    Fixed,
    check_state,
    plain,
    plain_keywords,
    saved_keywords,
    saved_value,
)
from apd_jax.sites.rows import batch_size

PyTree = Any
_CONSTRUCTOR = "a Target, Target.from_torch(module, inputs, ...), that has it"


@dataclasses.dataclass(frozen=True)
class TorchApply:
    """A module on parameters alone, `{torch's name: array}`.

    Attributes:
      skeleton: the module without numbers.
      fixed: its other tensors by name, and keywords of `forward`.
      output: the outputs of what `forward` returns: a key, attribute, index or function; None for
        all of it.
      dtype: what its numbers were converted to; None where they weren't.
      conversion_error: the largest relative difference to torch's own outputs; None where they
        were not compared.
      prefix: what the module that was given writes before its names, as torch.compile does.
      idle: names of other tensors that outputs don't depend on, such as kept activations.
    """

    skeleton: torch_copy.Skeleton
    fixed: Fixed
    output: Any
    dtype: str | None
    conversion_error: float | None = dataclasses.field(default=None, compare=False)
    prefix: str = dataclasses.field(default="", compare=False)
    idle: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)

    def __call__(self, params: Mapping[str, jax.Array], x: PyTree) -> PyTree:
        """The part of the module's outputs for inputs x that `output` chooses."""
        tensors, keywords = self.fixed.value
        pick = lambda result: _picked(result, self.output)  # noqa: E731
        return self.skeleton.run({**params, **tensors}, x, keywords, pick)

    @property
    def settings(self) -> dict[str, Any]:
        """What of the outputs is taken, keywords of `forward`, and the dtype."""
        keywords = plain_keywords(self.fixed.value[1])
        return {"output": plain(self.output), "keywords": keywords, "dtype": self.dtype}

    @property
    def state(self) -> PyTree:
        """Buffers and other tensors that are no parameters, by name, without idle ones."""
        tensors = self.fixed.value[0]
        return {name: array for name, array in tensors.items() if name not in self.idle}

    def with_state(self, state: PyTree) -> "TorchApply":
        """The same module with other buffers.

        Raises:
          UserError: they are not those of the module.
        """
        tensors, keywords = self.fixed.value
        idle = frozenset(torch_copy.kept(tensors)) - set(state)
        check_state({name: tensors[name] for name in tensors if name not in idle}, state)
        fixed = Fixed(({**tensors, **state}, keywords))
        return dataclasses.replace(self, fixed=fixed, idle=idle)

    def to_tensors(self, arrays: Mapping[str, jax.Array]) -> dict[str, torch.Tensor]:
        """Arrays as tensors with memory of their own, by the names in the module that was given."""
        return {
            self.prefix + name: torch.from_numpy(np.array(array)) for name, array in arrays.items()
        }


@torch.inference_mode(False)
def from_torch(
    module: torch.nn.Module,
    inputs: PyTree,
    output: Any,
    dtype: Any,
    valid: Callable | None,
    keywords: dict[str, Any],
) -> tuple[TorchApply, dict[str, jax.Array], PyTree, Callable[[Collection[str]], None]]:
    """`(apply_fn, params, inputs as JAX arrays, check)` of a module; see `Target.from_torch`.

    The last is called with the names of the parameters that are decomposed, and raises UserError
    if torch's derivative by one of them is another than JAX's.
    """
    wanted = torch_refused.chosen_dtype(dtype)
    given, module = module, torch_refused.check(module, wanted)
    if wanted is None:
        own = torch_copy.sharing_parameters(module)
    else:
        own = torch_copy.converted(module, wanted)
    inputs = torch_arguments.plain(inputs)
    x = jax.tree.map(torch_arguments.as_jax, inputs)
    batch_size(x)
    count = torch_compare.counted(valid, x)
    tensor = functools.partial(torch_arguments.as_torch, module=own, dtype=wanted)
    keywords = torch_arguments.map_arrays(tensor, keywords)
    arrays = torch_arguments.map_arrays(torch_arguments.as_jax, keywords)
    apply_fn, params = _converted(own, output, wanted, arrays)
    examples = jax.tree.map(tensor, inputs)
    pick = functools.partial(_picked, output=output)
    theirs = torch_own.runner(own, params, examples, keywords, pick)
    theirs(np.arange(1))  # what torch itself refuses is said first
    with jax.default_matmul_precision("highest"):
        ours = functools.partial(jax.jit(apply_fn), params)
        try:
            error = torch_compare.conversion_error(ours, theirs, x, count)
        except jax.errors.UnexpectedTracerError as kept:  # found by jit where it is used again
            raise UserError(torch_messages.CACHED) from kept
        torch_compare.check_apart(ours, x, torch_refused.sequence_first(module))
        if count is not None:
            torch_compare.check_gradient(apply_fn, params, x, count)
    skeleton, prefix = apply_fn.skeleton, torch_refused.prefix(given)
    outputs = lambda tensors: skeleton.run({**params, **tensors}, x, arrays, pick)  # noqa: E731
    idle = torch_copy.idle(outputs, apply_fn.fixed.value[0])
    apply_fn = dataclasses.replace(apply_fn, conversion_error=error, prefix=prefix, idle=idle)

    def check(names: Collection[str]) -> None:
        first = functools.partial(jax.tree.map, lambda leaf: leaf[:1])
        args, own_keywords = torch_arguments.arguments(first(examples))
        call = args, own_keywords | torch_arguments.map_arrays(torch.clone, keywords)
        with jax.default_matmul_precision("highest"), torch.inference_mode(False):
            run = lambda params: apply_fn(params, first(x))  # noqa: E731
            torch_backward.check(own, call, pick, run, params, names)

    return apply_fn, params, x, check


def restored(
    module: torch.nn.Module, settings: dict[str, Any]
) -> tuple[TorchApply, dict[str, jax.Array]]:
    """The function of a module that was saved with these settings, and its parameters.

    Raises:
      UserError: it is refused (see `torch_refused.check`); a setting could not be saved.
    """
    wanted = torch_refused.chosen_dtype(settings.get("dtype"))
    given, module = module, torch_refused.check(module, wanted)
    own = torch_copy.converted(module, wanted) if wanted else module
    output = saved_value("output", settings.get("output"), _CONSTRUCTOR)
    keywords = saved_keywords(settings.get("keywords", {}), _CONSTRUCTOR)
    apply_fn, params = _converted(own, output, wanted, keywords)
    return dataclasses.replace(apply_fn, prefix=torch_refused.prefix(given)), params


def _converted(
    module: torch.nn.Module, output: Any, dtype: torch.dtype | None, keywords: dict[str, Any]
) -> tuple[TorchApply, dict[str, jax.Array]]:
    skeleton, params, fixed = torch_copy.split(module)
    huggingface.run_every_expert(skeleton.module)
    name = None if dtype is None else str(dtype).removeprefix("torch.")
    return TorchApply(skeleton, Fixed((fixed, keywords)), output, name), params


def _picked(result: Any, output: Any) -> PyTree:
    """The outputs of what `forward` returned, in dicts, lists and tuples.

    Raises:
      UserError: there is no such output, or something is no tensor.
    """
    if callable(output):
        result = output(result)
    elif output is not None:
        result = _part(result, output)
    return given_arrays.plain(_tensors(result))


def _part(result: Any, output: Any) -> Any:
    """What a key, attribute or index chooses; of a tensor it would choose an example."""
    refused = UserError(f"output={output!r}: forward returns {_told(result)}")
    if isinstance(result, torch.Tensor) or isinstance(output, bool):
        raise refused
    try:
        if isinstance(output, str) and not isinstance(result, Mapping):
            return getattr(result, output)
        return result[output]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise refused from None


def _tensors(result: Any) -> PyTree:
    if isinstance(result, torch.Tensor):
        return result
    if isinstance(result, Mapping):
        return {name: _tensors(value) for name, value in result.items()}
    if isinstance(result, tuple | list):
        return tuple(map(_tensors, result))
    raise UserError(
        f"forward returns {_told(result)}, which is not a tensor: select the output with output=, "
        'a key or attribute ("logits"), an index or a function'
    )


def _told(result: Any) -> str:
    if isinstance(result, torch.Tensor):
        return "a Tensor: leave output= out, or give a function of the tensor"
    names = f" of {list(result)}" if isinstance(result, Mapping) else ""
    length = f" of {len(result)}" if isinstance(result, tuple | list) else ""
    return f"a {type(result).__name__}{names}{length}"
