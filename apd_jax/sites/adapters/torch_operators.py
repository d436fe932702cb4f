"""torch's operators on JAX arrays where torchax's own differ from torch, fail, or hide a weight.

Those of norms and of windows have files of their own. Letters: B batch, L queries, S keys, d width,
G groups of channels, I and O input and output channels.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch

from apd_jax.errors import UserError
from apd_jax.sites.adapters import torch_distances, torch_windows, torchax_import


def override(environment: Any) -> None:
    """Let an environment of torchax run the operators of this file."""
    functional, aten = torch.nn.functional, torch.ops.aten

    def on_arrays(function):
        def on_tensors(*args, **kwargs):
            args, kwargs = environment.t2j_iso(environment.v2t_iso((args, kwargs)))
            return environment.j2t_iso(function(*args, **kwargs))

        return on_tensors

    for operator, function in {
        torch.take_along_dim: _along,
        torch.Tensor.take_along_dim: _along,
        functional.scaled_dot_product_attention: _attention,
        aten.scaled_dot_product_attention: _attention,
        functional.bilinear: _bilinear,  # as aten.mv
        functional.embedding_bag: _embedding_bag,
        aten.embedding: _embedding,
        aten.embedding_renorm_: _renormalised,
        aten.rrelu_with_noise: _rrelu,
        aten._is_all_true: jnp.all,
        aten.mv: jnp.matmul,  # torchax multiplies and adds up, in which the weight is no site
        aten.convolution: _convolution,
        **torch_distances.operators(),
        **torch_windows.operators(),
    }.items():
        environment.override_op_definition(operator, on_arrays(function))

    known = torchax_import.load().ops.ops_registry.all_torch_functions
    for operator, names in _KEYWORDS.items():
        renamed = functools.partial(_renamed, known[operator].func, names)
        environment.override_op_definition(operator, on_arrays(renamed))

    def new_tensor(tensor, data, dtype=None, **unused):
        with environment:  # else torch makes one of its own
            return torch.tensor(data, dtype=tensor.dtype if dtype is None else dtype)

    environment.override_op_definition(torch.Tensor.new_tensor, new_tensor)

    getitem = torchax_import.load().ops.jtorch.getitem

    def chosen(tensor, indices):
        # A slice is a view, which torchax indexes by numbers and slices only: copy it otherwise.
        if any(isinstance(part, torch.Tensor | list) for part in _parts(indices)):
            tensor, indices = environment.v2t_iso((tensor, indices))
        return getitem(tensor, indices)

    environment.override_op_definition(torch.Tensor.__getitem__, chosen, is_view_op=True)


# Keywords of torch's functions, and what torchax calls them.
_KEYWORDS: dict[Any, dict[str, str]] = {
    torch.nn.functional.linear: {"input": "self", "weight": "weights"},
    torch.linalg.det: {"A": "input"},
    torch.linalg.slogdet: {"A": "input"},
    torch.linalg.solve: {"A": "a", "B": "b"},
    torch.linalg.svd: {"A": "a"},
    torch.tensor_split: {"indices": "indices_or_sections", "sections": "indices_or_sections"},
}


def _renamed(function: Callable, names: dict[str, str], *args: Any, **keywords: Any) -> Any:
    return function(*args, **{names.get(name, name): value for name, value in keywords.items()})


def _parts(indices: Any) -> Sequence[Any]:
    return indices if isinstance(indices, tuple) else (indices,)


@functools.cache
def _torchax_convolution() -> Any:
    """The convolution of torchax, on JAX arrays."""
    return torchax_import.load().ops.jaten._aten_convolution


def _convolution(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> jax.Array:
    """A convolution of [B, I, ...], as torch defines it.

    The weight of a transposed one is [I, O/G, ...]; torchax reads it as [I/G, O, ...], with the
    groups side by side, and only changes its shape, which mixes up the groups.
    """
    if transposed and groups > 1:
        parts = weight.reshape(groups, -1, *weight.shape[1:])
        weight = jnp.moveaxis(parts, 0, 1).reshape(weight.shape)
    settings = (stride, padding, dilation, transposed, output_padding, groups)
    return _torchax_convolution()(x, weight, bias, *settings)


def _along(input: jax.Array, indices: jax.Array, dim: int | None = None) -> jax.Array:
    """Entries along an axis; torch's own function refuses the indices of 32 bits that JAX has."""
    return jnp.take_along_axis(input, indices, axis=dim)


def _rrelu(
    x: jax.Array, noise: Any, lower: float = 1 / 8, upper: float = 1 / 3, *unused: Any
) -> jax.Array:
    """A ReLU with the mean of the random slopes, as outside of training; there is no noise."""
    return jnp.where(x > 0, x, x * (lower + upper) / 2)


def _bilinear(
    input1: jax.Array, input2: jax.Array, weight: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """`Σ_ij x_i w_oij y_j + b_o`, [..., O], for inputs x [..., I] and y [..., J]."""
    between = jnp.tensordot(input1, weight, axes=(-1, 1))
    outputs = jnp.einsum("...oj,...j->...o", between, input2)
    return outputs if bias is None else outputs + bias


def _embedding_bag(
    indices: jax.Array,
    weight: jax.Array,
    offsets: jax.Array | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: jax.Array | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> jax.Array:
    """Sum, mean or maximum of rows of a table for every bag, [B, d]; 0 for an empty bag.

    Indices are [B, S], or [S] of all bags one after another, which start at `offsets`.
    """
    if max_norm is not None:
        return _renormalised()
    counts = jnp.ones(indices.shape, bool)
    if padding_idx is not None:
        counts = indices != padding_idx % len(weight)
    rows = jnp.take(weight, indices, axis=0)
    if offsets is not None and indices.ndim == 1:
        starts = offsets[:-1] if include_last_offset else offsets
        places = jnp.arange(len(indices))
        bag = jnp.searchsorted(starts, places, side="right") - 1
        counts = counts & (bag == jnp.arange(len(starts))[:, None])
        rows = jnp.broadcast_to(rows, (len(starts), *rows.shape))
    if mode == "max":
        largest = jnp.max(jnp.where(counts[..., None], rows, -jnp.inf), axis=1)
        return jnp.where(counts.any(axis=1, keepdims=True), largest, 0)
    scales = counts.astype(rows.dtype)
    if per_sample_weights is not None:
        scales = scales * per_sample_weights
    total = jnp.sum(scales[..., None] * rows, axis=1)
    return total / jnp.maximum(scales.sum(axis=1), 1)[:, None] if mode == "mean" else total


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
