"""torch's operators on JAX arrays: an environment of torchax in which every tensor is JAX's.

Letters: B batch, L queries, S keys, d width.
"""

import contextlib
import functools
import math
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import torch

from apd_jax.errors import UserError
from apd_jax.sites.adapters import torchax_import


@functools.cache
def environment() -> Any:
    """A separate environment, so that other users of torchax are not affected."""
    base: Any = torchax_import.load().tensor.Environment

    class Environment(base):
        """Tensors made within a network are JAX's, whatever device it names."""

        def _should_use_torchax_tensor(self, device):
            return True

        def _is_same_device(self, the_tensor, new_device):
            return True

    made = Environment()

    def override(operator, function):
        def on_tensors(*args, **kwargs):
            args, kwargs = made.t2j_iso(made.v2t_iso((args, kwargs)))
            return made.j2t_iso(function(*args, **kwargs))

        made.override_op_definition(operator, on_tensors)

    override(torch.nn.functional.scaled_dot_product_attention, _attention)
    override(torch.ops.aten.scaled_dot_product_attention, _attention)
    override(torch.ops.aten.embedding, _embedding)
    override(torch.ops.aten.embedding_renorm_, _renormalised)

    def new_tensor(tensor, data, dtype=None, **unused):
        with made:  # else torch makes one of its own
            return torch.tensor(data, dtype=tensor.dtype if dtype is None else dtype)

    made.override_op_definition(torch.Tensor.new_tensor, new_tensor)
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
    with torchax_import.without_fast_path(), _without_caches(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Explicitly requested dtype")  # JAX has int32 for int64
        with torch.no_grad(), key, env:
            yield


@contextlib.contextmanager
def _without_caches() -> Iterator[None]:
    """Let transformers compute anew what it keeps for all calls, in one cache for all modules.

    Tensors of torch's own runs can't be used in JAX, nor those of a trace after it. It does so for
    torch.compile, too. Needs the lock of `without_fast_path`.
    """
    utilities: Any = sys.modules.get("transformers.pytorch_utils")
    asked = getattr(utilities, "is_torchdynamo_compiling", None)
    if asked is None:
        yield
        return
    utilities.is_torchdynamo_compiling = lambda: True
    try:
        yield
    finally:
        utilities.is_torchdynamo_compiling = asked


def to_jax(tensors: Any) -> Any:
    """Tensors of a pytree of torch's as JAX arrays."""
    return environment().t2j_iso(tensors)


def _embedding(weight: jax.Array, indices: jax.Array, *unused: Any, **unused_too: Any) -> jax.Array:
    """Rows of a table; the row of `padding_idx`, too, has its derivative.

    That a row is not trained does not make the outputs independent of it.
    """
    return jnp.take(weight, indices, axis=0)


def _renormalised(*unused: Any) -> jax.Array:
    raise UserError(
        "an embedding with max_norm changes its weights at each call: call it once with all its "
        "indices, then set max_norm to None"
    )


def _attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    attn_mask: jax.Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> jax.Array:
    """`softmax(q kᵀ · scale + mask) v`, [B, ..., L, d], as torch defines it.

    Where every key is masked the output is 0, as torch's is, and so are its derivatives; torchax's
    own is NaN there.
    """
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (jnp.repeat(array, repeats, axis=-3) for array in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = jnp.matmul(query, jnp.swapaxes(key, -1, -2)) * scale
    if is_causal:
        length, others = scores.shape[-2:]
        scores = jnp.where(jnp.tri(length, others, dtype=bool), scores, -jnp.inf)
    if attn_mask is not None and attn_mask.dtype == jnp.bool_:
        scores = jnp.where(attn_mask, scores, -jnp.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask.astype(scores.dtype)
    none = jnp.isneginf(scores).all(axis=-1, keepdims=True)
    weights = jax.nn.softmax(jnp.where(none, 0.0, scores), axis=-1)
    return jnp.matmul(jnp.where(none, 0.0, weights), value)
