"""Everything that is measured on a decomposed toy model of superposition (TMS).

Letters: C components, F features, h hidden width, L hidden layers, G groups of inputs.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from apd_jax.components import Components
from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.errors import UserError
from apd_jax.masked.forward import masked_apply
from apd_jax.objective.objective import Objective
from apd_jax.sites import Target
from apd_jax.studies.reconstruction import (
    LabelErrors,
    attribution_scores,
    check_width,
    draw,
    faithfulness_mse,
    label_errors,
    num_batches,
    row_mse,
    select,
    stream,
)
from apd_jax.studies.tms.network import LINEAR, hidden_names

MAX_ACTIVE = 4
RECOVERED_COSINE = 0.99
RECOVERED_NORM_RATIO = (0.8, 1.2)


class TMSArrays(NamedTuple):
    """What the figures of a TMS and its component browser show.

    Attributes:
      target: [F, h] the target's W, a row a feature.
      components: [C, F, h] the components of W.
      hidden: [L, h, h] the target's hidden layers (L = 0 without any).
      hidden_components: [C, L, h, h] their components.
      cosines: [C, F] cosine of each component's row to the target's.
      norm_ratios: [C, F] norm of each component's row over that of the target's.
      best_component: [F] int, the component with the largest cosine.
      recovered: [F] bool, whether the best component has the target's direction and length.
      shares: [C, F] `P_{c,j} · W_j / ‖W_j‖²`, the part of each feature's vector in each component.
      order: [C] int, the components in the order of the features they are best for, the rest last.
      label_errors: MSE to the labels by number of active features.
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


def identity_labels(x: jax.Array) -> jax.Array:
    """Return `x`, [B, F]: what a TMS is trained to compute."""
    return x


def row_similarity(target: np.ndarray, components: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare each row of each component with the same row of the target.

    `cos(P_{c,j}, W_j)` and `‖P_{c,j}‖ / ‖W_j‖`, both 0 where the row of the component or of the
    target is zero.

    Args:
      target: [F, h].
      components: [C, F, h].

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

    MMCS = mean_j max_c cos(P_{c,j}, W_j); ML2R = mean_j ‖P_{m(j),j}‖ / ‖W_j‖ with m(j) that best c.
    A feature is recovered where its cosine is at least 0.99 and its norm ratio in [0.8, 1.2];
    `features_recovered` counts the distinct best components among those.

    Args:
      cosines: [C, F].
      norm_ratios: [C, F].

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
      best_component: [F] int.
      num_components: C.

    Returns:
      [C] int, a permutation.
    """
    first = np.full(num_components, len(best_component))
    np.minimum.at(first, best_component, np.arange(len(best_component)))
    return np.argsort(first, kind="stable")


@jax.jit
def _topk_rows(target: Target, components: Components, x: jax.Array, mask: jax.Array) -> jax.Array:
    """[B] MSE of the masked output to the target's."""
    return row_mse(masked_apply(target, components, x, mask), target(x))


@jax.default_matmul_precision("highest")
def evaluate_tms(
    target: Target,
    components: Components,
    *,
    key: jax.Array,
    objective: Objective,
    distribution: SparseFeatures | None = None,
    batch_size: int = 2048,
    num_samples: int = 20_000,
) -> tuple[dict[str, float | int | bool], TMSArrays]:
    """Measure a decomposition of a TMS (section 3.1 of the paper).

    A single run: no seed axis. The monosemantic baseline gives the first h features their exact
    labels and 0 to the rest.

    Args:
      target: the TMS, [B, F] -> [B, F], with site "linear1" and, if any, "hidden_0", ...
      components: its components.
      key: PRNG key; the same key gives the same numbers.
      objective: what the components were trained with; its rule selects those that are active.
      distribution: what the inputs are drawn from; by default independent features, active with
        p=0.05 and uniform in [0, 1].
      batch_size: rows per batch; batch top-k selects within a batch, so use that of the training.
      num_samples: samples of the training distribution, and for each number of active features.

    Returns:
      (numbers, arrays): numbers under the names they have in results.json, as Python values, and
      `TMSArrays` on the host.

    Raises:
      UserError: where the target has no site "linear1", the distribution has
        another number of features, or a count is below 1.
    """
    if LINEAR not in target.sites:
        raise UserError(f"Target has sites {tuple(target.sites)}; a TMS has a site {LINEAR!r}.")
    weights, pieces = _matrices(target, components)
    num_features, width = weights[LINEAR].shape
    distribution = distribution or SparseFeatures(num_features, 0.05, (0.0, 1.0))
    check_width(distribution, num_features)
    sampled: dict[str, Any] = {
        "distribution": distribution,
        "objective": objective,
        "batch_size": batch_size,
    }

    def topk_batch(key: jax.Array) -> jax.Array:
        x = draw(key, distribution=distribution, batch_size=batch_size)
        scores = attribution_scores(target, components, x, objective=objective)
        return _topk_rows(target, components, x, select(scores, x, objective=objective))

    count = num_batches(num_samples, batch_size)
    topk_errors = stream(topk_batch, jax.random.fold_in(key, 0), count)
    cosines, ratios = row_similarity(weights[LINEAR], pieces[LINEAR])
    scores, best, recovered = superposition_scores(cosines, ratios)
    numbers = {
        "faithfulness_mse": faithfulness_mse(target, components),
        "topk_mse": float(topk_errors.mean(dtype=np.float64)),
        **scores,
        "solved": scores["features_recovered"] == num_features,
    }
    hidden = [name for name in pieces if name != LINEAR]
    num_components = pieces[LINEAR].shape[0]
    arrays = TMSArrays(
        target=weights[LINEAR],
        components=pieces[LINEAR],
        hidden=np.stack([weights[n] for n in hidden]) if hidden else np.zeros((0, width, width)),
        hidden_components=np.stack([pieces[n] for n in hidden], axis=1)
        if hidden
        else np.zeros((num_components, 0, width, width)),
        cosines=cosines,
        norm_ratios=ratios,
        best_component=best,
        recovered=recovered,
        shares=cosines * ratios,
        order=component_order(best, num_components=num_components),
        label_errors=label_errors(
            target,
            components,
            identity_labels,
            key=jax.random.fold_in(key, 1),
            max_active=MAX_ACTIVE,
            num_exact=width,
            passthrough=False,
            num_samples=num_samples,
            **sampled,
        ),
    )
    return numbers, arrays


def _matrices(
    target: Target, components: Components
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The matrices of the target [d_in, d_out] and of the components [C, d_in, d_out] by site."""
    depth = sum(1 for site in target.sites if site.startswith("hidden_"))
    names = [LINEAR, *hidden_names(depth)]
    weights = {name: np.asarray(target.weights[name]) for name in names}
    return weights, {name: np.asarray(components[name].matrices()) for name in names}
