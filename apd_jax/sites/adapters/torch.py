"""torch modules in eval mode, run in JAX operator by operator, compared with torch's own output.

Letters: B batch.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from apd_jax.errors import UserError
from apd_jax.sites.adapters import (
    huggingface,
    torch_compare,
    torch_copy,
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
    """

    skeleton: torch_copy.Skeleton
    fixed: Fixed
    output: Any
    dtype: str | None
    conversion_error: float | None = dataclasses.field(default=None, compare=False)

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
        """Buffers and other tensors that are no parameters, by name."""
        return dict(self.fixed.value[0])

    def with_state(self, state: PyTree) -> "TorchApply":
        """The same module with other buffers.

        Raises:
          UserError: they are not those of the module.
        """
        tensors, keywords = self.fixed.value
        check_state(tensors, state)
        return dataclasses.replace(self, fixed=Fixed((state, keywords)))

    @staticmethod
    def to_tensors(arrays: Mapping[str, jax.Array]) -> dict[str, torch.Tensor]:
        """Arrays as tensors with memory of their own."""
        return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def from_torch(
    module: torch.nn.Module,
    inputs: PyTree,
    output: Any,
    dtype: Any,
    valid: Callable | None,
    keywords: dict[str, Any],
) -> tuple[TorchApply, dict[str, jax.Array], PyTree]:
    """`(apply_fn, params, inputs as JAX arrays)` of a module; see `Target.from_torch`."""
    wanted = torch_refused.chosen_dtype(dtype)
    module = torch_refused.check(module, wanted)
    if wanted is None:
        own = torch_copy.sharing_parameters(module)
    else:
        own = torch_copy.converted(module, wanted)
    x = jax.tree.map(_as_jax, _plain(inputs))
    batch_size(x)
    apply_fn, params = _converted(own, output, wanted, keywords)
    given = jax.tree.map(lambda leaf: _as_torch(leaf, own, wanted), _plain(inputs))

    def theirs(rows: np.ndarray) -> PyTree:
        batch = jax.tree.map(lambda leaf: leaf[torch.as_tensor(rows, device=leaf.device)], given)
        args, own_keywords = torch_copy.arguments(batch)
        try:
            # The caller may be in a block of mixed precision, of which JAX knows nothing.
            device = next(module.parameters()).device.type
            with torch.no_grad(), torch.autocast(device, enabled=False):
                result = _picked(own(*args, **own_keywords, **keywords), output)
        except UserError:
            raise
        except Exception as error:  # whatever a module says to inputs that it does not take
            reason = (str(error).strip().splitlines() or [""])[0]
            raise UserError(
                f"{type(module).__name__} itself can't be run on a batch of {len(rows)} of the "
                f"inputs ({type(error).__name__}: {reason})"
            ) from error
        return jax.tree.map(torch_copy.as_array, result)

    theirs(np.arange(1))  # what torch itself refuses is said first
    with jax.default_matmul_precision("highest"):
        run = jax.jit(apply_fn)
        error = torch_compare.conversion_error(lambda batch: run(params, batch), theirs, x, valid)
        if valid is not None:
            torch_compare.check_gradient(apply_fn, params, x, valid)
    return dataclasses.replace(apply_fn, conversion_error=error), params, x


def restored(
    module: torch.nn.Module, settings: dict[str, Any]
) -> tuple[TorchApply, dict[str, jax.Array]]:
    """The function of a module that was saved with these settings, and its parameters.

    Raises:
      UserError: it is refused (see `torch_refused.check`); a setting could not be saved.
    """
    wanted = torch_refused.chosen_dtype(settings.get("dtype"))
    module = torch_refused.check(module, wanted)
    own = torch_copy.converted(module, wanted) if wanted else module
    output = saved_value("output", settings.get("output"), _CONSTRUCTOR)
    keywords = saved_keywords(settings.get("keywords", {}), _CONSTRUCTOR)
    return _converted(own, output, wanted, keywords)


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
    elif isinstance(output, str) and not isinstance(result, Mapping):
        if not hasattr(result, output):
            raise UserError(f"output={output!r}: forward returns {_told(result)}")
        result = getattr(result, output)
    elif output is not None:
        try:
            result = result[output]
        except (KeyError, IndexError, TypeError):
            raise UserError(f"output={output!r}: forward returns {_told(result)}") from None
    return _tensors(result)


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
    names = f" of {list(result)}" if isinstance(result, Mapping) else ""
    length = f" of {len(result)}" if isinstance(result, tuple | list) else ""
    return f"a {type(result).__name__}{names}{length}"


def _plain(inputs: PyTree) -> PyTree:
    """Inputs in dicts, tuples and lists, all of them arrays.

    Raises:
      UserError: something is no array.
    """
    if isinstance(inputs, Mapping):
        return {name: _plain(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple) and hasattr(inputs, "_fields"):  # a NamedTuple
        return type(inputs)(*map(_plain, inputs))
    if isinstance(inputs, tuple | list):
        return type(inputs)(_plain(value) for value in inputs)
    if not hasattr(inputs, "shape") or not hasattr(inputs, "dtype") or not len(inputs.shape):
        raise UserError(
            "inputs must be what forward takes: a tensor or array [B, ...], a dict of them for "
            f"keywords, or a tuple for positions; got {inputs!r:.80}. Pass what is the same for "
            "all examples, such as use_cache=False, as a keyword of from_torch"
        )
    return inputs


def _as_jax(leaf: Any) -> jax.Array:
    """A copy as a JAX array; whole numbers must fit it."""
    if isinstance(leaf, torch.Tensor):
        return _fitting(torch_copy.as_array(leaf), leaf.detach().cpu())
    return _fitting(jnp.array(np.array(leaf)), np.asarray(leaf))


def _fitting(array: jax.Array, given: Any) -> jax.Array:
    if jnp.issubdtype(array.dtype, jnp.integer) and given.dtype != array.dtype:
        top = int(abs(given).max()) if np.prod(given.shape) else 0
        if top > jnp.iinfo(array.dtype).max:
            raise UserError(
                f"inputs contain {top}, which does not fit {array.dtype}: use smaller numbers"
            )
    return array


def _as_torch(leaf: Any, module: torch.nn.Module, dtype: torch.dtype | None) -> torch.Tensor:
    """A copy as a tensor where the module is, as torch's users have them: int64, float32."""
    first = next(module.parameters())
    if isinstance(leaf, torch.Tensor):
        tensor = leaf.detach().clone()
    else:
        tensor = torch.from_numpy(np.array(_as_jax(leaf)))
        if not tensor.is_floating_point() and tensor.dtype not in (torch.bool, torch.uint8):
            tensor = tensor.to(torch.int64)
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return tensor.to(first.device)
