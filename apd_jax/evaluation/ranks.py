"""Singular values and ranks of components, and how well they add up to the target's weights.

Letters: C components, G stacked blocks, q singular values of a component at a site.
"""

from collections.abc import Mapping

import numpy as np

from apd_jax.components import Components
from apd_jax.sites import Target

# A direction counts where its singular value is above this share of the target's largest there.
SHARE = 0.01


def singular_values(components: Components) -> dict[str, np.ndarray]:
    """Singular values of every component, `{site: [C, q]}`, of all blocks of a stacked site.

    Through QR of the two factors, so that no matrix of the site's size is made.
    """
    found = {}
    for name, factors in components.items():
        reads, writes = (np.asarray(f, np.float64).swapaxes(-1, -2) for f in factors)
        cores = np.linalg.qr(reads)[1] @ np.linalg.qr(writes)[1].swapaxes(-1, -2)
        values = np.linalg.svd(cores, compute_uv=False)
        found[name] = values.reshape(len(values), -1)
    return found


def target_singular_values(target: Target) -> dict[str, np.ndarray]:
    """Singular values of the target's matrices, `{site: [q]}`, in falling order."""
    found = {
        name: np.linalg.svd(np.asarray(weight, np.float64), compute_uv=False).ravel()
        for name, weight in target.weights.items()
    }
    return {name: np.sort(values)[::-1] for name, values in found.items()}


def ranks(values: Mapping[str, np.ndarray], target_values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rank of every component over all sites, [C]; directions below `SHARE` don't count."""
    counts = [
        np.sum(values[name] > SHARE * target_values[name].max(), axis=1) for name in target_values
    ]
    return np.sum(counts, axis=0)


def network_rank(target_values: Mapping[str, np.ndarray]) -> int:
    """Rank of the target's matrices, all sites together."""
    return int(sum(np.sum(values > SHARE * values.max()) for values in target_values.values()))


def unfaithfulness(target: Target, components: Components) -> dict[str, float]:
    """`‖θ*_l − Σ_c P_{c,l}‖² / ‖θ*_l‖²` of every site: 0 where components add up, 1 for none."""
    found = {}
    for name, weight in target.weights.items():
        weight = np.asarray(weight, np.float64)
        missing = weight - np.asarray(components[name].sum(), np.float64)
        found[name] = float(np.sum(missing**2) / max(np.sum(weight**2), 1e-300))
    return found
