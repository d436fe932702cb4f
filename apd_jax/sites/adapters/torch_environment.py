"""torch's operators on JAX arrays: an environment of torchax in which every tensor is JAX's.

Letters: B batch, L queries, S keys, d width.
"""

import contextlib
import functools
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import torch

from apd_jax.sites.adapters import torch_operators, torchax_import


@functools.cache
def environment() -> Any:
    """A separate environment, so that other users of torchax are not affected."""
    base: Any = torchax_import.load().tensor.Environment
    view: Any = torchax_import.load().view.View

    class Environment(base):
        """Tensors made within a network are JAX's, whatever device it names."""

        def _should_use_torchax_tensor(self, device):
            return True

        def _is_same_device(self, the_tensor, new_device):
            return True

        def dispatch(self, func, types, args, kwargs):
            found = super().dispatch(func, types, args, kwargs)
            name = getattr(func, "__name__", "").partition(".")[0]
            in_place = name.endswith("_") and not name.endswith("__")
            if in_place and args and isinstance(args[0], view) and found is not args[0]:
                args[0].update(found)  # torchax has changed a copy of the slice
                return args[0]
            return found

    made = Environment()

    torch_operators.override(made)
    return made


def as_tensor(array: jax.Array) -> torch.Tensor:
    """A JAX array as a tensor of the environment."""
    return torchax_import.load().tensor.Tensor(jnp.asarray(array), environment())


@contextlib.contextmanager
def running() -> Iterator[None]:
    """Run torch's operators on JAX arrays in this thread."""
    env = environment()
    # Draws within a network must not leave a key of this trace behind.
    key = env.override_property(prng=jax.random.key(0))
    with torchax_import.without_fast_path(), _without_values(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Explicitly requested dtype")  # JAX has int32 for int64
        with torch.no_grad(), key, env:
            yield


def _set_entries(view: Any, indices: Any, value: Any) -> None:
    """Set entries of a slice; torchax takes numbers and slices as indices alone."""
    indices, value = environment().v2t_iso((indices, value))
    whole = view.torch()
    whole[indices] = value
    view.update(whole)


# Functions of libraries, or of their classes, that are replaced while a network is followed.
_REPLACED = (
    ("torchax.view:View", "__setitem__", _set_entries),
    # torchax changes the tensor itself.
    ("torchax.tensor:Tensor", "type_as", lambda tensor, other: tensor.to(other.dtype)),
    # transformers recomputes the tensors that it caches across calls and modules, as under
    # torch.compile: those of torch's own runs can't be used in JAX, nor those of a trace after it.
    ("transformers.pytorch_utils", "is_torchdynamo_compiling", lambda: True),
    # torch's Transformer compares the values of a mask with a causal one, as a hint: with False,
    # the mask itself is used.
    (
        "torch.nn.modules.transformer",
        "_detect_is_causal_mask",
        lambda mask, is_causal=None, size=None: is_causal is True,
    ),
)


@contextlib.contextmanager
def _without_values() -> Iterator[None]:
    """Replace functions that depend on values, or keep them. Needs `without_fast_path`'s lock."""
    with contextlib.ExitStack() as stack:
        for name, attribute, function in _REPLACED:
            module, _, kind = name.partition(":")
            place: Any = sys.modules.get(module)
            place = getattr(place, kind, None) if kind else place
            own = getattr(place, attribute, None)
            if own is not None:
                stack.callback(setattr, place, attribute, own)
                setattr(place, attribute, function)
        yield


def to_jax(tensors: Any) -> Any:
    """Tensors of a pytree of torch's as JAX arrays."""
    return environment().t2j_iso(tensors)
