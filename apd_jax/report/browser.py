"""Data of the report's component browser: arrays in, one JSON-serialisable dict out.

C components, F input features, O outputs, m rank of a factor pair, r singular triplets kept.
Numbers travel as base64 little-endian arrays: weights as 16-bit or 8-bit integers with a scale,
the rest as float32.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

FactorPair = tuple[np.ndarray, np.ndarray]

# Limit on the singular triplets of a site: later ones are too small to see in a heatmap.
_MAX_TRIPLETS = 16


class View(NamedTuple):
    """How the browser shows one site's matrices: `left @ P @ right`, with named axes.

    A residual stream of 1000 random directions is unreadable; `left = W_E` shows an input matrix by
    feature instead.

    Fields:
      rows: what one row of the shown matrix is, e.g. "feature".
      columns: what one column is, e.g. "neuron".
      left: [rows, d_in], or None for the site's own input basis.
      right: [d_out, columns], or None for the site's own output basis.
    """

    rows: str = "input"
    columns: str = "output"
    left: np.ndarray | None = None
    right: np.ndarray | None = None


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


def factor_svd(
    u: np.ndarray, v: np.ndarray, keep: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular value decomposition of every `U_c V_c`, through QR of the two factors.

    `U = Q_u R_u`, `V^T = Q_v R_v`, so `U V = Q_u (R_u R_v^T) Q_v^T` and only an m x m core is
    decomposed.

    Args:
      u: [C, d_in, m].
      v: [C, m, d_out].
      keep: how many singular vectors to return.

    Returns:
      left [C, d_in, r], all singular values [C, q] in falling order, right [C, r, d_out], with
      q = min(d_in, m, d_out) and r = min(keep, q).
    """
    q_u, r_u = np.linalg.qr(u)
    q_v, r_v = np.linalg.qr(np.swapaxes(v, 1, 2))
    core_left, values, core_right = np.linalg.svd(r_u @ np.swapaxes(r_v, 1, 2), full_matrices=False)
    left = q_u @ core_left[:, :, :keep]
    right = core_right[:, :keep] @ np.swapaxes(q_v, 1, 2)
    return left, values, right


def browser_data(
    *,
    factors: Mapping[str, FactorPair],
    target_weights: Mapping[str, np.ndarray],
    attributions: np.ndarray,
    topk_mask: np.ndarray,
    target_outputs: np.ndarray,
    topk_outputs: np.ndarray,
    without: np.ndarray,
    active_share: np.ndarray,
    represented: Sequence[Sequence[int]],
    max_weights: int = 4096,
    max_site_bytes: int = 420_000,
    views: Mapping[str, View] | None = None,
    seed: int | None = None,
    inputs: str = "one input feature is 1, all others are 0",
) -> dict[str, Any]:
    """Collect the data of the component browser of one decomposition.

    A site with at most `max_weights` entries is embedded whole (16 bits a weight) as long as its C
    matrices fit in `max_site_bytes`. Any other site is embedded as the leading singular triplets
    that fit (8 bits a number), with the share of the squared norm that they hold.

    Args:
      factors: site -> (U [C, d_in, m], V [C, m, d_out]), of one seed.
      target_weights: site -> [d_in, d_out], the same sites.
      attributions: [F, C], attributions of the F probe inputs.
      topk_mask: [F, C] bool, the components switched on for each probe input.
      target_outputs: [F, O], the target's outputs for the probe inputs.
      topk_outputs: [F, O], outputs with only the components of `topk_mask` on.
      without: [F, C], change of the output for each probe input without each component.
      active_share: [C], share of samples in [0, 1] on which each component is active.
      represented: for each component, the indices of the features that it represents.
      max_weights: largest number of entries of a matrix that is embedded whole.
      max_site_bytes: how much one site may take, before base64 adds a third.
      views: site -> View, how to show that site; other sites are shown in their own basis.
      seed: seed of the components, shown to the reader; None if there is only one.
      inputs: description of a probe input, a clause that follows "where".

    Returns:
      A dict of strings, numbers, lists and packed arrays, for `render_report(browser=...)`.

    Raises:
      ValueError: a shape doesn't fit the others, or an array holds NaN or infinity.
    """
    num_features, num_components = _check_tables(
        attributions, topk_mask, target_outputs, topk_outputs, without, active_share, represented
    )
    views = views or {}
    sites = _checked_sites(factors, target_weights, views, num_components)
    return {
        "seed": seed,
        "inputs": inputs,
        "num_components": num_components,
        "num_features": num_features,
        "num_outputs": int(np.shape(target_outputs)[1]),
        "sites": [
            _site_data(name, u, v, w, views.get(name, View()), max_weights, max_site_bytes)
            for name, (u, v, w) in sites.items()
        ],
        "attributions": encode_array(attributions, "float32"),
        "topk_mask": encode_array(topk_mask, "uint8"),
        "target_outputs": encode_array(target_outputs, "float32"),
        "topk_outputs": encode_array(topk_outputs, "float32"),
        "without": encode_array(without, "float32"),
        "active_share": encode_array(active_share, "float32"),
        "represented": [[int(i) for i in features] for features in represented],
    }


def _site_data(
    name: str,
    u: np.ndarray,
    v: np.ndarray,
    target: np.ndarray,
    view: View,
    max_weights: int,
    max_bytes: int,
) -> dict[str, Any]:
    """Pack one site; see `browser_data`."""
    _, values, _ = factor_svd(u, v, 1)
    if view.left is not None:
        u, target = view.left @ u, view.left @ target
    if view.right is not None:
        v, target = v @ view.right, target @ view.right
    num_components, (rows, columns) = len(u), target.shape
    whole = rows * columns <= max_weights and 2 * num_components * rows * columns <= max_bytes
    site = {
        "name": name,
        "rows": view.rows,
        "columns": view.columns,
        "viewed": view.left is not None or view.right is not None,
        "shape": [rows, columns],
        "singular_values": encode_array(values, "float32"),
        "target": quantise(target, "int16" if whole else "int8", (0, 1)),
    }
    if whole:
        return {**site, "form": "whole", "weights": quantise(u @ v, "int16", (1, 2))}
    return {**site, "form": "triplets", **_triplets(u, v, max_bytes)}


def _triplets(u: np.ndarray, v: np.ndarray, max_bytes: int) -> dict[str, Any]:
    """Pack the leading singular triplets that fit; `left` carries the singular value."""
    bytes_of_one = len(u) * (u.shape[1] + v.shape[2])
    keep = int(np.clip(max_bytes // bytes_of_one, 1, _MAX_TRIPLETS))
    left, values, right = factor_svd(u, v, keep)
    energy = np.sum(values**2, axis=1)
    held = np.sum(values[:, :keep] ** 2, axis=1)
    share = np.divide(held, energy, out=np.ones_like(held), where=energy > 0)
    scaled = left * values[:, None, : left.shape[2]]
    return {
        "left": quantise(np.swapaxes(scaled, 1, 2), "int8", (2,)),
        "right": quantise(right, "int8", (2,)),
        "explained": encode_array(share, "float32"),
    }


def _float64(name: str, array: np.ndarray) -> np.ndarray:
    """A float64 copy of an array that must be finite."""
    array = np.asarray(array, dtype=np.float64)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} holds NaN or infinity; the browser needs finite numbers")
    return array


def _check_tables(
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


def _checked_sites(
    factors: Mapping[str, FactorPair],
    target_weights: Mapping[str, np.ndarray],
    views: Mapping[str, View],
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
