"""Comparison of arrays that are computed in two ways."""

from typing import Any

import numpy as np


def close(first: Any, second: Any, tolerance: float) -> bool:
    """Whether two arrays differ by at most `tolerance` times their largest finite number.

    Numbers that are not finite in both, such as logits of −∞, count as equal.
    """
    wide = np.complex128 if np.iscomplexobj(first) else np.float64
    a, b = np.asarray(first, wide), np.asarray(second, wide)
    same = (a == b) | (~np.isfinite(a) & ~np.isfinite(b))
    scale = max(np.abs(a[~same]).max(initial=0.0), np.abs(b[~same]).max(initial=0.0))
    return bool((np.abs(a[~same] - b[~same]) <= tolerance * scale).all())
