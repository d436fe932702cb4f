"""Checks of what the component browser shows: shapes that fit each other, finite numbers.

Letters: C components, F input features, O outputs, m rank of a factor pair.
"""

from collections.abc import Collection, Mapping

import numpy as np

FactorPair = tuple[np.ndarray, np.ndarray]


def _float64(name: str, array: np.ndarray) -> np.ndarray:
    """A float64 copy of an array that must be finite."""
    array = np.asarray(array, dtype=np.float64)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} holds NaN or infinity; the browser needs finite numbers")
    return array


def check_tables(
    attributions, topk_mask, target_outputs, topk_outputs, without, active_share, represented
):
    """Check the tables over features and components against each other; returns F and C."""
    if np.ndim(attributions) != 2:
        raise ValueError(f"attributions must be [F, C], got shape {np.shape(attributions)}")
    num_features, num_components = np.shape(attributions)
    if np.ndim(target_outputs) != 2 or len(target_outputs) != num_features:
        raise ValueError(
            f"target_outputs must be [F, O] with F={num_features} as in attributions, "
            f"got shape {np.shape(target_outputs)}"
        )
    expected = {
        "topk_mask": (topk_mask, (num_features, num_components)),
        "topk_outputs": (topk_outputs, np.shape(target_outputs)),
        "without": (without, (num_features, num_components)),
        "active_share": (active_share, (num_components,)),
    }
    for name, (array, shape) in expected.items():
        if np.shape(array) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {np.shape(array)}")
    if len(represented) != num_components:
        raise ValueError(f"represented must list C={num_components} items, got {len(represented)}")
    for component, features in enumerate(represented):
        outside = [int(i) for i in features if not 0 <= i < num_features]
        if outside:
            raise ValueError(
                f"represented[{component}] names features {outside}, expected 0..{num_features - 1}"
            )
    for name, array in {
        "attributions": attributions,
        "target_outputs": target_outputs,
        "topk_outputs": topk_outputs,
        "without": without,
        "active_share": active_share,
    }.items():
        _float64(name, array)
    return num_features, num_components


def checked_sites(
    factors: Mapping[str, FactorPair],
    target_weights: Mapping[str, np.ndarray],
    views: Collection[str],
    num_components: int,
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """U, V and the target's weights of every site, all float64 and of the sizes that must agree."""
    if set(factors) != set(target_weights):
        raise ValueError(
            f"factors has sites {sorted(factors)}, target_weights has {sorted(target_weights)}; "
            "expected the same"
        )
    if unknown := set(views) - set(factors):
        raise ValueError(f"views names unknown sites {sorted(unknown)}, expected {sorted(factors)}")
    for name, (u, v) in factors.items():
        weight = np.shape(target_weights[name])
        if np.ndim(u) != 3 or np.ndim(v) != 3 or np.shape(u)[2] != np.shape(v)[1]:
            raise ValueError(
                f"factors[{name!r}] must be (U [C, d_in, m], V [C, m, d_out]), "
                f"got {np.shape(u)} and {np.shape(v)}"
            )
        if len(u) != num_components or len(v) != num_components:
            raise ValueError(
                f"factors[{name!r}] has {len(u)} and {len(v)} components, "
                f"expected C={num_components} as in attributions"
            )
        if weight != (np.shape(u)[1], np.shape(v)[2]):
            raise ValueError(
                f"target_weights[{name!r}] has shape {weight}, "
                f"expected {(np.shape(u)[1], np.shape(v)[2])} from its factors"
            )
    return {
        name: (
            _float64(f"factors[{name!r}]", u),
            _float64(f"factors[{name!r}]", v),
            _float64(f"target_weights[{name!r}]", target_weights[name]),
        )
        for name, (u, v) in factors.items()
    }
