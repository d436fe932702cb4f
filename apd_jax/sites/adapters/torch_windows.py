"""torch's operators on windows of an image where torchax's own differ from torch, or fail.

Letters: I channels, L1, L2, ... positions.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from apd_jax.sites.adapters import torchax_import


def operators() -> dict[Any, Callable]:
    """Functions of JAX arrays by the operators that they stand for."""
    aten, own = torch.ops.aten, torchax_import.load().ops.jtorch
    return {
        aten.avg_pool1d: average_pool,
        aten.avg_pool2d: average_pool,
        aten.avg_pool3d: average_pool,
        aten.adaptive_max_pool1d: adaptive_max_pool,
        aten.adaptive_max_pool2d: adaptive_max_pool,
        aten.adaptive_max_pool3d: adaptive_max_pool,
        aten.pad: own.pad,  # cuts by negative widths, as aten.col2im does
        aten.mT: lambda x: jnp.swapaxes(x, -1, -2),  # of affine grids
        aten._upsample_bilinear2d_aa: lambda *args: smoothed("linear", *args),
        aten._upsample_bicubic2d_aa: lambda *args: smoothed("cubic", *args),
        torch.nn.functional.interpolate: interpolated,
    }


def average_pool(
    x: jax.Array,
    size: Sequence[int],
    strides: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> jax.Array:
    """Means over windows of [..., I, L1, L2, ...].

    With `ceil_mode` the last window may reach beyond the padding. Places there are not counted in
    the mean; torchax counts them.
    """
    axes, strides = len(size), strides or size
    inner = list(padding) * (axes if len(padding) == 1 else 1)
    lead = [(0, 0)] * (x.ndim - axes)

    def beyond(length: int, window: int, stride: int, pad: int) -> int:
        rest = length + 2 * pad - window
        last = rest // stride
        if ceil_mode and rest % stride and (last + 1) * stride < length + pad:
            last += 1
        return max(0, last * stride - rest)

    spatial = x.shape[-axes:]
    outer = [beyond(*sizes) for sizes in zip(spatial, size, strides, inner, strict=True)]

    def sums(array: jax.Array, pads: list[tuple[int, int]]) -> jax.Array:
        unit = (1,) * len(lead)
        windows, steps = unit + tuple(size), unit + tuple(strides)
        return jax.lax.reduce_window(array, 0.0, jax.lax.add, windows, steps, lead + pads)

    total = sums(x, [(pad, pad + more) for pad, more in zip(inner, outer, strict=True)])
    if divisor_override is not None:
        return total / divisor_override
    counted = jnp.ones((1,) * len(lead) + spatial, x.dtype)
    paddings = lead + [(pad, pad) for pad in inner]
    counted = jnp.pad(counted, paddings, constant_values=count_include_pad)
    return total / sums(counted, [(0, more) for more in outer])


def adaptive_max_pool(x: jax.Array, sizes: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """Maxima over windows of [..., I, L1, L2, ...] that cover it, and their flat positions.

    Of n windows of an axis, window i reaches from `⌊i L / n⌋` to `⌈(i + 1) L / n⌉`.
    """
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    lengths = x.shape[-len(sizes) :]
    edges = [
        [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
        for length, size in zip(lengths, sizes, strict=True)
    ]
    places = np.arange(np.prod(lengths)).reshape(lengths)
    windows = [
        places[tuple(slice(*edge) for edge in window)].ravel()
        for window in itertools.product(*edges)
    ]
    largest = max(map(len, windows))
    # A position twice changes no maximum.
    rows = np.stack([np.pad(window, (0, largest - len(window)), "edge") for window in windows])
    found = x.reshape(*x.shape[: -len(sizes)], -1)[..., rows]
    chosen = found.argmax(axis=-1, keepdims=True)
    maxima = jnp.take_along_axis(found, chosen, axis=-1)
    positions = jnp.asarray(rows)[np.arange(len(rows)), chosen[..., 0]]
    shape = (*x.shape[: -len(sizes)], *sizes)
    return maxima.reshape(shape), positions.reshape(shape)


def smoothed(
    method: str, x: jax.Array, size: Sequence[int], align_corners: bool, *scales: float | None
) -> jax.Array:
    """`x` [..., L1, L2] in another size, with wider kernels where it shrinks (`antialias=True`)."""
    steps = [
        scale or new / old for scale, new, old in itertools.zip_longest(scales, size, x.shape[-2:])
    ]
    axes = (x.ndim - 2, x.ndim - 1)
    shape = (*x.shape[:-2], *size)
    factors, moves = jnp.asarray(steps, jnp.float32), jnp.zeros(2)
    return jax.image.scale_and_translate(x, shape, axes, factors, moves, method, antialias=True)


def interpolated(x: jax.Array, size: Any = None, *args: Any, **options: Any) -> jax.Array:
    """torchax's own, which takes one size for each axis alone."""
    sizes = (size,) * (x.ndim - 2) if isinstance(size, int) else size
    return torchax_import.load().ops.jtorch.functional_interpolate(x, sizes, *args, **options)
