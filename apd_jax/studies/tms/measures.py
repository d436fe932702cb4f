"""Measures of a decomposed toy model of superposition (TMS).

Letters: C components, F features, h hidden width, L hidden layers, G groups of inputs.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from apd_jax.decomposition.result import Decomposition
from apd_jax.studies.reconstruction import (
    LabelErrors,
    faithfulness_mse,
    label_errors,
    topk_errors,
)
from apd_jax.studies.tms.network import LINEAR, TMSTask, hidden_names

MAX_ACTIVE = 4
RECOVERED_COSINE = 0.99
RECOVERED_NORM_RATIO = (0.8, 1.2)


class TMSArrays(NamedTuple):
    """Arrays for the figures of a TMS and its component browser.

    Attributes:
      target: the target's W, one row per feature, [F, h].
      components: the components of W, [C, F, h].
      hidden: the target's hidden layers, [L, h, h] (L = 0 if there are none).
      hidden_components: the components of the hidden layers, [C, L, h, h].
      cosines: cosine between each component's row and the target's, [C, F].
      norm_ratios: norm of each component's row divided by the norm of the target's, [C, F].
      best_component: the component with the largest cosine, [F] int.
      recovered: whether the best component has the target's direction and length, [F] bool.
      shares: share of each feature's vector in each component, `P_{c,j} · W_j / ‖W_j‖²`, [C, F].
      order: components in the order of the features that they are best for, then the rest, [C] int.
      label_errors: MSE against the labels by number of active features.
    """

    target: np.ndarray
    components: np.ndarray
    hidden: np.ndarray
    hidden_components: np.ndarray
    cosines: np.ndarray
    norm_ratios: np.ndarray
    best_component: np.ndarray
    recovered: np.ndarray
    shares: np.ndarray
    order: np.ndarray
    label_errors: LabelErrors


def row_similarity(target: np.ndarray, components: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare each row of each component with the same row of the target.

    The measures are `cos(P_{c,j}, W_j)` and `‖P_{c,j}‖ / ‖W_j‖`, both 0 if the row of the
    component or of the target is zero.

    Args:
      target: matrix of the target, [F, h].
      components: matrices of the components, [C, F, h].

    Returns:
      (cosines, norm ratios), each [C, F] float64.
    """
    target, components = np.asarray(target, np.float64), np.asarray(components, np.float64)
    norms, target_norms = np.linalg.norm(components, axis=-1), np.linalg.norm(target, axis=-1)
    dots = np.einsum("cfh,fh->cf", components, target)
    products = norms * target_norms
    cosines = np.divide(dots, products, out=np.zeros_like(dots), where=products > 0)
    ratios = np.divide(norms, target_norms, out=np.zeros_like(dots), where=products > 0)
    return cosines, ratios


def superposition_scores(
    cosines: np.ndarray, norm_ratios: np.ndarray
) -> tuple[dict[str, float | int], np.ndarray, np.ndarray]:
    """Score how well components isolate features.

    MMCS = mean_j max_c cos(P_{c,j}, W_j), and ML2R = mean_j ‖P_{m(j),j}‖ / ‖W_j‖, where m(j) is the
    best component, the one with the largest cosine. A feature is recovered if its cosine is at
    least 0.99 and its norm ratio in [0.8, 1.2]. `features_recovered` counts the distinct best
    components of recovered features.

    Args:
      cosines: cosines of rows, [C, F].
      norm_ratios: norm ratios of rows, [C, F].

    Returns:
      ({"mmcs", "ml2r", "features_recovered"}, best component [F] int, recovered [F] bool).
    """
    best = cosines.argmax(axis=0)
    features = np.arange(cosines.shape[1])
    cosine, ratio = cosines[best, features], norm_ratios[best, features]
    low, high = RECOVERED_NORM_RATIO
    recovered = (cosine >= RECOVERED_COSINE) & (ratio >= low) & (ratio <= high)
    numbers = {
        "mmcs": float(cosine.mean()),
        "ml2r": float(ratio.mean()),
        "features_recovered": int(np.unique(best[recovered]).size),
    }
    return numbers, best, recovered


def component_order(best_component: np.ndarray, *, num_components: int) -> np.ndarray:
    """Sort components by the first feature that they are best for; the others follow by index.

    Args:
      best_component: best component of each feature, [F] int.
      num_components: C.

    Returns:
      A permutation of the components, [C] int.
    """
    first = np.full(num_components, len(best_component))
    np.minimum.at(first, best_component, np.arange(len(best_component)))
    return np.argsort(first, kind="stable")


@jax.default_matmul_precision("highest")
def evaluate_tms(
    task: TMSTask, decomposition: Decomposition, *, key: jax.Array, samples: int
) -> tuple[dict[str, float | int | bool], TMSArrays]:
    """Measure a decomposition of a TMS (section 3.1 of the paper).

    The monosemantic baseline returns exact labels for the first h features and 0 for the rest.

    The arguments are those of `Study.evaluate`; there are as many samples for each number of active
    features.

    Returns:
      (numbers, arrays): numbers as Python values under their names in results.json, and
      `TMSArrays` on the host.
    """
    target, components = decomposition.target, decomposition.components
    depth = sum(1 for site in target.sites if site.startswith("hidden_"))
    names = [LINEAR, *hidden_names(depth)]
    weights = {name: np.asarray(target.weights[name]) for name in names}
    pieces = {name: np.asarray(components[name].matrices()) for name in names}
    num_features, width = weights[LINEAR].shape
    sampling: dict[str, Any] = {
        "objective": decomposition.objective,
        "batch_size": decomposition.settings.batch_size,
        "num_samples": samples,
    }
    topk_mse, _ = topk_errors(
        task.inputs, target, components, key=jax.random.fold_in(key, 0), **sampling
    )
    errors = label_errors(
        target,
        components,
        task.labels,
        key=jax.random.fold_in(key, 1),
        distribution=task.inputs,
        max_active=MAX_ACTIVE,
        num_exact=width,
        passthrough=False,
        **sampling,
    )
    cosines, ratios = row_similarity(weights[LINEAR], pieces[LINEAR])
    scores, best, recovered = superposition_scores(cosines, ratios)
    count = len(pieces[LINEAR])
    hidden = np.array([weights[n] for n in names[1:]]).reshape(-1, width, width)
    parts = np.array([pieces[n] for n in names[1:]]).reshape(-1, count, width, width)
    numbers = {
        "faithfulness_mse": faithfulness_mse(target, components),
        "topk_mse": topk_mse,
        **scores,
        "solved": scores["features_recovered"] == num_features,
    }
    return numbers, TMSArrays(
        target=weights[LINEAR],
        components=pieces[LINEAR],
        hidden=hidden,
        hidden_components=np.swapaxes(parts, 0, 1),
        cosines=cosines,
        norm_ratios=ratios,
        best_component=best,
        recovered=recovered,
        shares=cosines * ratios,
        order=component_order(best, num_components=count),
        label_errors=errors,
    )
