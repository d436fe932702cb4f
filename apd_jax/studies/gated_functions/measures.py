"""Measures of decomposed gated functions: which component holds which weights.

Letters: C components, n functions, H neurons of a layer, D residual width, G points of a curve.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from apd_jax.decomposition.result import Decomposition
from apd_jax.studies.gated_functions.network import GatedFunctions, owners
from apd_jax.studies.reconstruction import faithfulness_mse, outputs, topk_errors

PURE = 0.95
CURVE_POINTS = 201


class GatedArrays(NamedTuple):
    """Arrays for the figures of gated functions and the component browser.

    Attributes:
      target: weights of the target, `{site: [d_in, d_out]}`.
      components: weights of the components, `{site: [C, d_in, d_out]}`.
      owners: function of every neuron, `{layer: [H] int}`.
      assignment: component of every function, -1 if there are too few components, [n] int.
      purity: purity of every function (see `function_purity`), [n].
      shares: share of each function's weight in each component, `<P_c, θ_i> / ‖θ_i‖²`, [C, n].
      points: values of x, [G].
      curves: the target's output with one bit on, [n, G].
      topk_curves: the same with only the component of largest attribution, [n, G].
    """

    target: dict[str, np.ndarray]
    components: dict[str, np.ndarray]
    owners: dict[str, np.ndarray]
    assignment: np.ndarray
    purity: np.ndarray
    shares: np.ndarray
    points: np.ndarray
    curves: np.ndarray
    topk_curves: np.ndarray


class Energies(NamedTuple):
    """Sums of squared weights of the components.

    Attributes:
      inside: sums over the weights of each function, [C, n].
      total: sums over all weights, [C].
    """

    inside: np.ndarray
    total: np.ndarray

    @property
    def outside(self) -> float:
        """The share of all squared weight at positions where the target has no weight."""
        return 1 - float(self.inside.sum() / self.total.sum()) if self.total.sum() else 0.0


def supports(
    target: dict[str, np.ndarray], owned: dict[str, np.ndarray], num_functions: int
) -> dict[str, np.ndarray]:
    """The positions of each function's weights, `{site: bool [n, d_in, d_out]}`.

    Args:
      target: weights `{site: [d_in, d_out]}` of the sites `LAYER/mlp_in/kernel` and
        `LAYER/mlp_out/kernel`.
      owned: function of every neuron, `{layer: [H]}`.
      num_functions: n.
    """
    places = {}
    for site, weight in target.items():
        layer, kind = site.split("/")[:2]
        own = owned[layer] == np.arange(num_functions)[:, None]
        own = own[:, None, :] if kind == "mlp_in" else own[:, :, None]
        places[site] = own & (weight != 0)
    return places


def energies(
    components: dict[str, np.ndarray],
    places: dict[str, np.ndarray],
    units: dict[str, np.ndarray] | None = None,
) -> Energies:
    """Sum the squared weights of components over the weights of each function, and over all.

    Args:
      components: weights of the components, `{site: [C, d_in, d_out]}`.
      places: positions of each function's weights, from `supports`.
      units: units of the weights, `{site: [d_in, 1]}`; 1 if None.
    """
    num_components = len(next(iter(components.values())))
    num_functions = len(next(iter(places.values())))
    inside, total = np.zeros((num_components, num_functions)), np.zeros(num_components)
    for site, matrices in components.items():
        scaled = np.asarray(matrices, np.float64) / (1.0 if units is None else units[site])
        inside += np.einsum("cio,fio->cf", scaled**2, places[site])
        total += (scaled**2).sum(axis=(1, 2))
    return Energies(inside, total)


def row_units(target: dict[str, np.ndarray], num_functions: int) -> dict[str, np.ndarray]:
    """The size of the target's weights by kind (of x, of bits, written), `[d_in, 1]`.

    Written weights have their RMS as unit, the others the largest of their kind. The target has no
    weights that read the output; their unit is that of the weights that read x.
    """
    units = {}
    for site, weight in target.items():
        rms = np.sqrt(np.mean(weight[weight != 0] ** 2)) if weight.any() else 1.0
        units[site] = np.full((len(weight), 1), rms)
        if site.split("/")[1] == "mlp_in":
            units[site][[0, -1]] = np.abs(weight[0]).max()
            units[site][1 : 1 + num_functions] = np.abs(weight[1 : 1 + num_functions]).max()
    return units


def assign(inside: np.ndarray) -> np.ndarray:
    """Assign a component to every function, maximising the squared weight on their weights.

    Args:
      inside: squared weights of components on the weights of functions, [C, n].

    Returns:
      Component of every function, [n] int; -1 for the functions without one if C < n.
    """
    components, functions = linear_sum_assignment(inside, maximize=True)
    chosen = np.full(inside.shape[1], -1)
    chosen[functions] = components
    return chosen


def weight_purity(table: Energies, assignment: np.ndarray) -> float:
    """The share of squared weight that components have on their own function's weights.

    `Σ_i ‖P_{a(i)} on θ_i‖² / Σ_c ‖P_c‖²`, or 0 if all weights are 0.
    """
    held = np.flatnonzero(assignment >= 0)
    total = table.total.sum()
    return float(table.inside[assignment[held], held].sum() / total) if total > 0 else 0.0


def function_purity(table: Energies, assignment: np.ndarray) -> np.ndarray:
    """The purity of every function, [n].

    The squared weight of component a(i) on the weights of function i, divided by all squared
    weight of component a(i) plus that of the other components on the weights of function i.
    """
    purity = np.zeros(len(assignment))
    for function, component in enumerate(assignment):
        if component < 0:
            continue
        own = table.inside[component, function]
        either = table.total[component] + table.inside[:, function].sum() - own
        purity[function] = own / either if either > 0 else 0.0
    return purity


def function_shares(
    target: dict[str, np.ndarray],
    components: dict[str, np.ndarray],
    places: dict[str, np.ndarray],
) -> np.ndarray:
    """The share of each function's weight in each component, `<P_c, θ_i> / ‖θ_i‖²`, [C, n]."""
    dots, norms = np.zeros(()), np.zeros(())
    for site, weight in target.items():
        own = weight * places[site]
        dots = dots + np.einsum("cio,fio->cf", components[site], own)
        norms = norms + np.square(own).sum(axis=(1, 2))
    return dots / norms


def one_bit_inputs(task: GatedFunctions, points: np.ndarray) -> jax.Array:
    """Inputs with one control bit on, function after function: [n·G, 1 + n]."""
    n = task.num_functions
    bits = np.repeat(np.eye(n), len(points), axis=0)
    return jnp.asarray(np.concatenate([np.tile(points, n)[:, None], bits], axis=1), jnp.float32)


@jax.default_matmul_precision("highest")
def evaluate_gated(
    task: GatedFunctions, decomposition: Decomposition, *, key: jax.Array, samples: int
) -> tuple[dict[str, float | int | bool], GatedArrays]:
    """Measure a decomposition of the hand-coded network against the known functions.

    The arguments are those of `Study.evaluate`.

    Returns:
      (numbers, arrays): numbers for results.json, and `GatedArrays` on the host. `solved` is true
      if every function has a purity of at least 0.95.
    """
    target, components = decomposition.target, decomposition.components
    weights = {site: np.asarray(weight, np.float64) for site, weight in target.weights.items()}
    pieces = {site: np.asarray(f.matrices(), np.float64) for site, f in components.items()}
    owned = owners(target.params)
    places = supports(weights, owned, task.num_functions)
    table = energies(pieces, places)
    assignment = assign(table.inside)
    purity = function_purity(table, assignment)
    scaled = energies(pieces, places, row_units(weights, task.num_functions))
    points, curves, topk_curves = _curves(task, decomposition)
    errors = np.mean((curves - topk_curves) ** 2, axis=1)
    topk_mse, _ = topk_errors(
        task.inputs,
        target,
        components,
        objective=decomposition.objective,
        key=key,
        batch_size=decomposition.settings.batch_size,
        num_samples=samples,
    )
    numbers = {
        "faithfulness_mse": faithfulness_mse(target, components),
        "topk_mse": topk_mse,
        "weight_purity": weight_purity(table, assignment),
        "least_purity": float(purity.min()),
        "scaled_purity": weight_purity(scaled, assign(scaled.inside)),
        "weight_outside": table.outside,
        "curve_mse": float(errors.mean()),
        "curve_error": float(np.sqrt(errors.sum() / np.mean(curves**2, axis=1).sum())),
        "features_recovered": int((purity >= PURE).sum()),
        "solved": bool((purity >= PURE).all()),
    }
    arrays = GatedArrays(
        weights,
        pieces,
        owned,
        assignment,
        purity,
        function_shares(weights, pieces, places),
        points,
        curves,
        topk_curves,
    )
    return numbers, arrays


def _curves(task: GatedFunctions, decomposition: Decomposition):
    """Points [G], and the curves of the target and of the strongest component, [n, G]."""
    points = np.linspace(*task.domain, CURVE_POINTS)
    both = outputs(
        decomposition.target,
        decomposition.components,
        one_bit_inputs(task, points),
        objective=decomposition.objective.with_topk(1, selection="sample"),
    )
    shape = (task.num_functions, CURVE_POINTS)
    return points, *(np.asarray(y, np.float64).reshape(shape) for y in both)
