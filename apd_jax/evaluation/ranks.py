"""Singular values and ranks of components, and how well they add up to the target's weights.

Letters: C components, G stacked blocks, q singular values of a component at a site.
"""

from collections.abc import Mapping

import numpy as np

from apd_jax.components import Components
from apd_jax.sites import Target

# A direction counts if its singular value is above this share of the target's largest at the site.
SHARE = 0.01
_LEAST = float(np.finfo(np.float32).tiny)


def singular_values(components: Components) -> dict[str, np.ndarray]:
    """Singular values of every component, `{site: [C, q]}`, those of all blocks of a stacked site.

    They are those of the core `R_in R_outᵀ` of QR decompositions of the two factors, so that no
    matrix of the site's size is formed.
    """
    found = {}
    for name, factors in components.items():
        reads, writes = (np.asarray(f, np.float64).swapaxes(-1, -2) for f in factors)
        cores = np.linalg.qr(reads)[1] @ np.linalg.qr(writes)[1].swapaxes(-1, -2)
        values = np.linalg.svd(cores, compute_uv=False)
        found[name] = values.reshape(len(values), -1)
    return found


def target_singular_values(target: Target) -> dict[str, np.ndarray]:
    """Singular values of the target's matrices, `{site: [q]}`, in descending order."""
    found = {
        name: np.linalg.svd(np.asarray(weight, np.float64), compute_uv=False).ravel()
        for name, weight in target.weights.items()
    }
    return {name: np.sort(values)[::-1] for name, values in found.items()}


def limits(target_values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Singular value above which a direction counts, by site.

    A site that holds nothing has no scale to compare with: what components hold there is rounding
    and noise that cancels, and none of its directions count.
    """
    largest = {name: float(values.max(initial=0.0)) for name, values in target_values.items()}
    return {
        name: np.inf if holds_nothing(target_values[name]) else SHARE * value
        for name, value in largest.items()
    }


def ranks(values: Mapping[str, np.ndarray], target_values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rank of every component over all sites, [C]: the directions above the sites' `limits`."""
    counts = [np.sum(values[name] > least, axis=1) for name, least in limits(target_values).items()]
    return np.sum(counts, axis=0)


def network_rank(target_values: Mapping[str, np.ndarray]) -> int:
    """Rank of the target's matrices, all sites together."""
    least = limits(target_values)
    return int(sum(np.sum(values > least[name]) for name, values in target_values.items()))


def unfaithfulness(target: Target, components: Components) -> dict[str, float]:
    """The share of the squared weights of every site that the components' sum misses.

    `‖θ*_l − Σ_c P_{c,l}‖² / ‖θ*_l‖²`: 0 where components add up, 1 without any. A site that
    holds nothing is compared with the squared weights of all sites together; if these are zero too,
    the share is 1 unless nothing is missing.
    """
    weights = {name: np.asarray(weight, np.float64) for name, weight in target.weights.items()}
    squares = {
        name: 0.0 if holds_nothing(weight) else float(np.sum(weight**2))
        for name, weight in weights.items()
    }
    total = sum(squares.values())
    found = {}
    for name, weight in weights.items():
        missing = float(np.sum((weight - np.asarray(components[name].sum(), np.float64)) ** 2))
        whole = squares[name] or total or missing
        found[name] = missing / whole if missing else 0.0
    return found


def empty_sites(target: Target) -> list[str]:
    """Sites that hold nothing, such as the second factor of a fresh LoRA adapter."""
    weights = {name: np.asarray(w, np.float64) for name, w in target.weights.items()}
    return [name for name, weight in weights.items() if holds_nothing(weight)]


def holds_nothing(weight: np.ndarray) -> bool:
    """Whether weights, or their singular values, are all zero or their squares are in float32."""
    return bool(np.sum(np.square(weight)) < _LEAST)
