"""Comparison of arrays that are computed in two ways."""

from typing import Any

import numpy as np


def close(first: Any, second: Any, tolerance: float) -> bool:
    """Whether two arrays differ by at most `tolerance` times the largest number that differs.

    The same infinity in both, such as logits of −∞, counts as equal, as does NaN where the other is
    not finite either. A finite number is never close to one that is not.
    """
    wide = np.complex128 if np.iscomplexobj(first) else np.float64
    a, b = np.asarray(first, wide), np.asarray(second, wide)
    neither_finite = ~np.isfinite(a) & ~np.isfinite(b)
    differ = (a != b) & ~(neither_finite & (np.isnan(a) | np.isnan(b)))
    a, b = a[differ], b[differ]
    if not (np.isfinite(a) & np.isfinite(b)).all():
        return False
    scale = max(np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0))
    return bool((np.abs(a - b) <= tolerance * scale).all())
