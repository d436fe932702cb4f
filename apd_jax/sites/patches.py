"""Patches: the rows of a convolution, kept as the image that they overlap in.

Formed, they repeat every number of the image as often as the window has places. Products with
patches are convolutions of the image, so that only literal definitions form them.
Letters: B batch, N images of an example, C components, G groups, m rank.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Window:
    """How a convolution moves over an image; see `jax.lax.conv_general_dilated`.

    Attributes:
      shape: sizes of the kernel in space.
      strides, padding, lhs_dilation, rhs_dilation: as there, in the order of these axes.
      groups: G.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int

    def convolve(self, images: jax.Array, kernel: jax.Array) -> jax.Array:
        """Images [n, channels, *space] with a kernel [f, channels / G, *shape]: [n, *space, f]."""
        first, last = tuple(range(images.ndim)), images.ndim - 1
        dtype = jnp.result_type(images, kernel)
        return jax.lax.conv_general_dilated(
            images.astype(dtype),
            kernel.astype(dtype),
            self.strides,
            self.padding,
            self.lhs_dilation,
            self.rhs_dilation,
            jax.lax.ConvDimensionNumbers(first, first, (0, last, *range(1, last))),
            feature_group_count=self.groups,
        )

    def patches(self, images: jax.Array) -> jax.Array:
        """What every place of images [n, channels, *space] reads, [n, *space, channels · shape]."""
        found = jax.lax.conv_general_dilated_patches(
            images,
            self.shape,
            self.strides,
            self.padding,
            self.lhs_dilation,
            self.rhs_dilation,
            precision=jax.lax.Precision.HIGHEST,  # patches are copies: they must not be rounded
        )
        return jnp.moveaxis(found, 1, -1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Patches:
    """Rows [B, ..., (G), d_in] of a convolution; shape, axes and type are those of the rows.

    Attributes:
      images: [B, channels, *space], or [B, N, channels, *space] where an example has several.
      window: how the convolution moves over them.
      order: order of the axes (images, *space) in the rows; that of N if an example has several.
    """

    images: jax.Array
    window: Window = dataclasses.field(metadata={"static": True})
    order: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, images: jax.Array, window: Window) -> "Patches":
        """The rows of images [n, channels, *space] in the order of the convolution's result."""
        return cls(images, window, tuple(range(1 + len(window.shape))))

    def arranged(self, order: Sequence[int], added: bool) -> "Patches | jax.Array":
        """Rows with their axes in another order; those of a single example get a batch axis of 1.

        Patches must be formed where the batch is an axis of the images.
        """
        if added:
            return Patches(self.images[None], self.window, tuple(order))
        if order[0] == 0:
            return Patches(self.images, self.window, tuple(order))
        formed = self.formed()
        return jnp.transpose(formed, (*order, *range(len(order), formed.ndim)))

    @property
    def dtype(self) -> Any:
        """Type of the numbers."""
        return self.images.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """[B, ..., (G), d_in]."""
        return jax.eval_shape(Patches.formed, self).shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, examples: Any) -> "Patches":
        """The rows of some examples, [*examples, ..., (G), d_in], for numbers [n] of examples."""
        return dataclasses.replace(self, images=self.images[examples])

    def read(self, reads: jax.Array) -> jax.Array:
        """Products with directions [C, (G,) m, d_in], [B, ..., (G), C, m]."""
        groups = self.window.groups
        count, rank = reads.shape[0], reads.shape[-2]
        if groups > 1:
            reads = jnp.moveaxis(reads, 0, 1)
        channels = reads.shape[-1] // math.prod(self.window.shape)
        found = self._each(
            lambda images: self.window.convolve(
                images, reads.reshape(-1, channels, *self.window.shape)
            )
        )
        return found.reshape(*found.shape[:-1], *((groups,) if groups > 1 else ()), count, rank)

    def formed(self) -> jax.Array:
        """The rows themselves."""
        found, groups = self._each(self.window.patches), self.window.groups
        return found.reshape(*found.shape[:-1], groups, -1) if groups > 1 else found

    def _each(self, function) -> jax.Array:
        """`function` of all images, with the axes of the rows in their order."""
        own = 1 + len(self.window.shape)
        lead = self.images.shape[: self.images.ndim - own]
        found = function(self.images.reshape(-1, *self.images.shape[-own:]))
        found = found.reshape(*lead, *found.shape[1:])
        before = len(lead) - 1
        axes = (*range(before), *(before + a for a in self.order), found.ndim - 1)
        return jnp.transpose(found, axes)
