"""Axes of arrays."""

from typing import Any


def spread(array: Any, ndim: int) -> Any:
    """The array with trailing axes of length 1, `ndim` axes in all: it broadcasts along them."""
    return array.reshape(*array.shape, *(1,) * (ndim - array.ndim))
