"""Components that need no training, as baselines for a decomposition.

Letters: C components, G stacked blocks, q rank-one terms of a site.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from apd_jax.components import Components, Factors
from apd_jax.sites import Target

# A baseline whose factors hold more numbers than this is omitted.
_MAX_NUMBERS = 20_000_000
_Terms = tuple[np.ndarray, np.ndarray]


def _singular(weight: np.ndarray) -> _Terms:
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    return left.T, values[:, None] * right


def _neurons(weight: np.ndarray) -> _Terms:
    return weight.T, np.eye(weight.shape[1])


BASELINES: dict[str, Callable[[np.ndarray], _Terms]] = {"svd": _singular, "neurons": _neurons}
MEANINGS = {
    "svd": "singular directions of every matrix",
    "neurons": "columns of every matrix, one for each output unit",
}


def baseline(target: Target, name: str) -> Components | None:
    """Make components that have rank one at a single site each and add up to the target exactly.

    Args:
      target: the network.
      name: `"svd"`, every singular direction of every matrix; `"neurons"`, every column.

    Returns:
      `{site: Factors}`, or None if they would be too large.
    """
    weights = {site: np.asarray(weight, np.float32) for site, weight in target.weights.items()}
    parts = {site: site_terms(weight, BASELINES[name]) for site, weight in weights.items()}
    total = sum(len(reads) for reads, _ in parts.values())
    widths = sum(reads[0].size + writes[0].size for reads, writes in parts.values())
    if total * widths > _MAX_NUMBERS:
        return None
    components, start = {}, 0
    for site, (reads, writes) in parts.items():
        padding = (start, total - start - len(reads))
        components[site] = Factors(*(_padded(array, padding) for array in (reads, writes)))
        start += len(reads)
    return components


def _padded(array: np.ndarray, padding: tuple[int, int]) -> jnp.ndarray:
    return jnp.asarray(np.pad(array, [padding] + [(0, 0)] * (array.ndim - 1)), jnp.float32)


def site_terms(weight: np.ndarray, terms: Callable[[np.ndarray], _Terms]) -> _Terms:
    """Write a matrix [d_in, d_out] as factors [q, 1, d], or a stack as factors [G·q, G, 1, d]."""
    if weight.ndim == 2:
        reads, writes = terms(weight)
        return reads[:, None], writes[:, None]
    blocks = [terms(block) for block in weight]
    sides = []
    for side in (0, 1):
        count = len(blocks[0][0])
        stacked = np.zeros((len(blocks) * count, len(blocks), 1, blocks[0][side].shape[1]))
        for number, block in enumerate(blocks):
            stacked[number * count : (number + 1) * count, number, 0] = block[side]
        sides.append(stacked)
    return sides[0], sides[1]
