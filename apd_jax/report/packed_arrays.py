"""Arrays in the report's page, as base64 in little-endian order.

Weights travel as 16-bit or 8-bit integers with a scale, the rest as float32.
"""

import base64
from typing import Any

import numpy as np


def encode_array(array: np.ndarray, dtype: str) -> dict[str, Any]:
    """Pack an array for the page as `{"dtype", "shape", "data"}`, with base64 data in C order.

    Args:
      array: any shape.
      dtype: "int8", "int16", "uint8" or "float32"; stored little-endian.

    Returns:
      A JSON-serialisable dict.
    """
    packed = np.ascontiguousarray(array, dtype=np.dtype(dtype).newbyteorder("<"))
    data = base64.b64encode(packed.tobytes()).decode("ascii")
    return {"dtype": dtype, "shape": list(packed.shape), "data": data}


def quantise(array: np.ndarray, dtype: str, axes: tuple[int, ...]) -> dict[str, Any]:
    """Round to signed integers times a scale: `array ~ integers * scale`.

    `scale = max|array| / largest integer`, so the error is at most half a scale.

    Args:
      array: any shape.
      dtype: "int8" or "int16".
      axes: axes that share one scale.

    Returns:
      What `encode_array` returns, plus "scale": a float32 array over the axes that are left.
    """
    largest = np.iinfo(dtype).max
    peak = np.max(np.abs(array), axis=axes, keepdims=True, initial=0.0)
    scale = np.where(peak > 0, peak / largest, 1.0)
    packed = encode_array(np.rint(array / scale), dtype)
    return {**packed, "scale": encode_array(np.squeeze(scale, axis=axes), "float32")}
