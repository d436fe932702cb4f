"""Data of the report's component browser: arrays in, one JSON-serialisable dict out.

Letters: C components, F input features, O outputs, m rank of a factor pair, r singular triplets
kept.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from apd_jax.report.packed_arrays import encode_array, quantise

FactorPair = tuple[np.ndarray, np.ndarray]

_MAX_WEIGHTS = 4096  # largest number of entries of a matrix that is embedded whole
_MAX_SITE_BYTES = 420_000  # how much one site may take, before base64 adds a third
# Limit on the singular triplets of a site: later ones are too small to see in a heatmap.
_MAX_TRIPLETS = 16


class View(NamedTuple):
    """How the browser shows one site's matrices: `left @ P @ right`, with named axes.

    A residual stream of 1000 random directions is unreadable; `left = W_E` shows an input matrix by
    feature instead.

    Attributes:
      rows: what one row of the shown matrix is, e.g. "feature".
      columns: what one column is, e.g. "neuron".
      left: [rows, d_in], or None for the site's own input basis.
      right: [d_out, columns], or None for the site's own output basis.
    """

    rows: str = "input"
    columns: str = "output"
    left: np.ndarray | None = None
    right: np.ndarray | None = None


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
    views: Mapping[str, View],
    seed: int | None,
    inputs: str,
) -> dict[str, Any]:
    """Collect the data of the component browser of one decomposition.

    A site with at most 4096 entries is embedded whole (16 bits a weight) as long as its C matrices
    fit in 420 kB. Any other site is embedded as the leading singular triplets that fit (8 bits a
    number), with the share of the squared norm that they hold.

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
      views: site -> View, how to show that site; other sites are shown in their own basis.
      seed: seed of the components, shown to the reader; None if there is only one.
      inputs: description of a probe input, a clause that follows "where".

    Returns:
      A dict of strings, numbers, lists and packed arrays, for `render_report(browser=...)`.

    Raises:
      ValueError: `views` names an unknown site, or `represented` an unknown feature or not
        every component.
    """
    num_features, num_components = attributions.shape
    if unknown := set(views) - set(factors):
        raise ValueError(f"views names unknown sites {sorted(unknown)}, expected {sorted(factors)}")
    if len(represented) != num_components:
        raise ValueError(
            f"represented must list the features of {num_components} components, got "
            f"{len(represented)} lists: define Study.represented"
        )
    for component, features in enumerate(represented):
        if outside := [int(i) for i in features if not 0 <= i < num_features]:
            raise ValueError(
                f"represented[{component}] names features {outside}, expected 0..{num_features - 1}"
            )
    return {
        "seed": seed,
        "inputs": inputs,
        "num_components": num_components,
        "num_features": num_features,
        "num_outputs": int(np.shape(target_outputs)[1]),
        "sites": [
            _site_data(name, *pair, target_weights[name], views.get(name, View()))
            for name, pair in factors.items()
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
    name: str, u: np.ndarray, v: np.ndarray, target: np.ndarray, view: View
) -> dict[str, Any]:
    """Pack one site; see `browser_data`."""
    u, v, target = (np.asarray(array, dtype=np.float64) for array in (u, v, target))
    _, values, _ = factor_svd(u, v, 1)
    if view.left is not None:
        u, target = view.left @ u, view.left @ target
    if view.right is not None:
        v, target = v @ view.right, target @ view.right
    num_components, (rows, columns) = len(u), target.shape
    entries = rows * columns
    whole = entries <= _MAX_WEIGHTS and 2 * num_components * entries <= _MAX_SITE_BYTES
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
    return {**site, "form": "triplets", **_triplets(u, v)}


def _triplets(u: np.ndarray, v: np.ndarray) -> dict[str, Any]:
    """Pack the leading singular triplets that fit; `left` carries the singular value."""
    bytes_of_one = len(u) * (u.shape[1] + v.shape[2])
    keep = int(np.clip(_MAX_SITE_BYTES // bytes_of_one, 1, _MAX_TRIPLETS))
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
