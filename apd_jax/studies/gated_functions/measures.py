"""How well components hold the functions of the hand-coded network, weight by weight.

Letters: C components, n functions, H neurons of a layer, D residual width, G points of a curve.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from apd_jax.components import Components
from apd_jax.decomposition.result import Decomposition
from apd_jax.masked.forward import masked_apply
from apd_jax.objective.objective import Objective
from apd_jax.sites import Target
from apd_jax.studies.gated_functions.network import GatedFunctions, owners
from apd_jax.studies.reconstruction import faithfulness_mse, num_batches, row_mse, stream

PURE = 0.95
CURVE_POINTS = 201


class GatedArrays(NamedTuple):
    """What the figures of gated functions and the component browser show.

    Attributes:
      target: `{site: [d_in, d_out]}` the target's weights.
      components: `{site: [C, d_in, d_out]}` the components'.
      owners: `{layer: [H] int}` the function of every neuron.
      assignment: [n] int, the component of every function; -1 where there are too few.
      purity: [n] see `function_purity`.
      shares: [C, n] share of each function's weight in each component, `<P_c, θ_i> / ‖θ_i‖²`.
      points: [G] values of x.
      curves: [n, G] the target's output with one bit on.
      topk_curves: [n, G] the same with only the component of largest attribution.
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

    @property
    def represented(self) -> list[list[int]]:
        """For every component, the functions that it holds purely."""
        lists: list[list[int]] = [[] for _ in range(len(self.shares))]
        for function, component in enumerate(self.assignment):
            if component >= 0 and self.purity[function] >= PURE:
                lists[int(component)].append(function)
        return lists


class Energies(NamedTuple):
    """Squared weights of components, by whose they are in the target.

    Attributes:
      inside: [C, n] on the weights of each function.
      total: [C] on all weights.
    """

    inside: np.ndarray
    total: np.ndarray

    @property
    def outside(self) -> float:
        """Share of all squared weight where the target has no weight."""
        return 1 - float(self.inside.sum() / self.total.sum()) if self.total.sum() else 0.0


def supports(
    target: dict[str, np.ndarray], owned: dict[str, np.ndarray], num_functions: int
) -> dict[str, np.ndarray]:
    """Where the target's weights are, by function: `{site: bool [n, d_in, d_out]}`.

    Args:
      target: `{site: [d_in, d_out]}`, sites `LAYER/mlp_in/kernel` and `LAYER/mlp_out/kernel`.
      owned: `{layer: [H]}` the function of every neuron.
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
      components: `{site: [C, d_in, d_out]}`.
      places: what `supports` returns.
      units: `{site: [d_in, 1]}` what weights are measured in; 1 if None.
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
    """RMS size of the target's weights of the same kind: of x, of bits, or written; `[d_in, 1]`.

    Weights that read the output, which the target has none of, are measured in units of those
    that read x.
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
    """Give every function a component of its own so that most squared weight is in its place.

    Args:
      inside: [C, n].

    Returns:
      [n] int, -1 for the functions that are left where C < n.
    """
    components, functions = linear_sum_assignment(inside, maximize=True)
    chosen = np.full(inside.shape[1], -1)
    chosen[functions] = components
    return chosen


def weight_purity(table: Energies, assignment: np.ndarray) -> float:
    """Share of all squared weight that lies, on its own function's weights, in its component.

    `Σ_i ‖P_{a(i)} on θ_i‖² / Σ_c ‖P_c‖²`, 0 where there is no weight at all.
    """
    held = np.flatnonzero(assignment >= 0)
    total = table.total.sum()
    return float(table.inside[assignment[held], held].sum() / total) if total > 0 else 0.0


def function_purity(table: Energies, assignment: np.ndarray) -> np.ndarray:
    """For every function, [n], how much its component and its weights are each other's alone.

    The squared weight of component a(i) on the weights of function i, over that of all of
    component a(i) and of the other components on the weights of function i.
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
    """How much of each function's weights each component holds: `<P_c, θ_i> / ‖θ_i‖²`, [C, n]."""
    dots, norms = 0.0, 0.0
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
    """Measure a decomposition of the hand-coded network against its known truth.

    Args:
      task: the network.
      decomposition: of one seed.
      key: random key.
      samples: inputs for the error of the top-k output, rounded up to whole batches.

    Returns:
      (numbers, arrays): numbers of results.json, and `GatedArrays` on the host. `solved` where
      every function has a purity of at least 0.95.
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
    numbers = {
        "faithfulness_mse": faithfulness_mse(target, components),
        "topk_mse": _topk_mse(task, decomposition, key, samples),
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


@functools.partial(jax.jit, static_argnames="objective")
def _outputs(target: Target, components: Components, x: jax.Array, *, objective: Objective):
    """Outputs [B, 1] of the target and of its active components."""
    scores = objective.attribute(target, components, x).scores
    mask = objective.select(scores, x).mask
    return target(x), masked_apply(target, components, x, mask)


def _curves(task: GatedFunctions, decomposition: Decomposition):
    """Points [G], the target's curves [n, G], and those of the one strongest component."""
    points = np.linspace(*task.domain, CURVE_POINTS)
    both = _outputs(
        decomposition.target,
        decomposition.components,
        one_bit_inputs(task, points),
        objective=decomposition.objective.with_topk(1, selection="sample"),
    )
    shape = (task.num_functions, CURVE_POINTS)
    return points, *(np.asarray(y, np.float64).reshape(shape) for y in both)


def _topk_mse(task: GatedFunctions, decomposition: Decomposition, key, samples: int) -> float:
    """MSE of the output with the active components alone, on the training distribution."""
    settings = decomposition.settings

    def batch(batch_key: jax.Array) -> jax.Array:
        x = task.inputs(batch_key, settings.batch_size)
        both = _outputs(
            decomposition.target, decomposition.components, x, objective=decomposition.objective
        )
        return row_mse(*both)

    count = num_batches(samples, settings.batch_size)
    return float(stream(batch, key, count).mean(dtype=np.float64))
