"""Learned gates: one small function per component says on which rows the component is active.

The gate of component c sees two numbers of the same row: the attribution A_c, and the reading
`R_c = sqrt(Σ_l ‖x_l P_{c,l}‖²)`, the norm of what c would write in the target's own pass. It is
open where

    z_c = w_c (log A_c² − log τ²) + v_c (log R_c² − ρ_c) + b_c ≥ 0.

Gates start with w = 1, v = 0, b = 0 and a τ between the K-th and the next of the attributions of
many rows, K = floor(k · rows): they open exactly where batch-wide top-k of these rows would. ρ_c is
the mean of log R_c² over these rows, so that v_c and b_c are learned independently.

The scores of components with gates are `exp(z / 2)` instead of A: attributions in units of the
threshold, 1 where a gate opens. All code that ranks or selects by scores works with them.

Gates are trained with the components by a straight-through estimate: losses see masks of 0 and 1,
and the derivative of the sigmoid σ(z) replaces that of the step at z = 0. Unlike the hard-concrete
distribution, this needs no random numbers and no temperature, and training and evaluation use the
same masks. Gradients reach only the gates, not the factors through A and R.

Letters: B batch, T positions, R rows, C components, m rank, G stacked blocks.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from apd_jax import blocks, validity
from apd_jax.attribution import Attributed
from apd_jax.components import Components, Factors
from apd_jax.errors import UserError
from apd_jax.masked import forward
from apd_jax.objective.selected import Selected
from apd_jax.sites import PyTree, Records, Target

_LEAST = 1e-30  # added to squares before their logarithm
_MOST = 60.0  # bound of |z|, so that scores are finite


class Gates(NamedTuple):
    """The gates of all components.

    Attributes:
      weights: [C, 3], w, v and b of every gate.
      centre: [C, 2], log τ² and ρ; not trained.
    """

    weights: jax.Array
    centre: jax.Array


class Gated(dict[str, Factors]):
    """Components `{site: Factors}` with their gates: a pytree like other components.

    Attributes:
      gates: the gates.
    """

    def __init__(self, components: Components, gates: Gates):
        super().__init__(components)
        self.gates = gates


def _flatten(components: Gated) -> tuple[list[Any], tuple[str, ...]]:
    names = tuple(sorted(components))
    pairs = [(jax.tree_util.DictKey(name), components[name]) for name in names]
    return [*pairs, (jax.tree_util.GetAttrKey("gates"), components.gates)], names


def _unflatten(names: tuple[str, ...], children: Any) -> Gated:
    *factors, gates = children
    return Gated(dict(zip(names, factors, strict=True)), gates)


jax.tree_util.register_pytree_with_keys(Gated, _flatten, _unflatten)


def check(objective: Any) -> None:
    """Raise UserError if an objective combines learned gates with what excludes them."""
    weights = objective.coefficients
    if objective.selection != "gates":
        if weights.l0:
            raise UserError(
                f"coefficient l0 is a loss of learned gates, got selection={objective.selection!r}:"
                " set selection='gates' or l0=0"
            )
        return
    lp = weights.lp_minimality, weights.lp_simplicity
    if objective.topk is None or objective.distil or any(lp):
        raise UserError(
            "selection='gates' needs a topk to start from, and neither distil nor Lp losses; got "
            f"topk={objective.topk}, distil={objective.distil}, lp_minimality={lp[0]}, "
            f"lp_simplicity={lp[1]}; set selection='sample' or leave these out"
        )


def without_gradient(components: Components) -> Components:
    """The components as constants; gates, if there are any, can still learn."""
    if not isinstance(components, Gated):
        return jax.lax.stop_gradient(components)
    return Gated(jax.lax.stop_gradient(dict(components)), components.gates)


def readings(components: Components, records: Records, lead: tuple[int, ...]) -> jax.Array:
    """`R_c² = Σ_l ‖x_l P_{c,l}‖²`, summed over all uses of sites.

    Args:
      components: `{site: Factors}` with C components.
      records: input rows of every use of a site.
      lead: (B,) or (B, T), the axes that rows of scores stand for.

    Returns:
      [*lead, C].
    """
    total: Any = 0.0
    for record in records.values():
        factors = components[record.name].placed(record.placement)
        hidden = forward.read_all(record.x, factors)  # [B, (T), ..., (G), C, m]
        # ‖h V‖² = h (V Vᵀ) hᵀ: nothing of the width of the site is formed.
        gram = jnp.einsum("c...md,c...nd->c...mn", factors.writes, factors.writes)
        pattern = "...gcm,cgmn,...gcn->...gc" if factors.stacked else "...cm,cmn,...cn->...c"
        squares = jnp.einsum(pattern, hidden, gram, hidden).astype(jnp.float32)
        total += squares.reshape(*lead, -1, squares.shape[-1]).sum(axis=-2)
    return total


def opened(components: Gated, attributed: Attributed) -> Attributed:
    """Replace attributions by the scores of gates, `exp(z / 2)`; NaN and infinity stay."""
    raw = jax.lax.stop_gradient(attributed.scores)
    fixed = jax.lax.stop_gradient(dict(components))
    squares = readings(fixed, attributed.records, raw.shape[:-1])
    weights, centre = components.gates.weights, jax.lax.stop_gradient(components.gates.centre)
    # Two `where`: the gradient of the branch that is not taken must be finite too.
    finite = jnp.isfinite(raw)
    own = _log(jnp.square(jnp.where(finite, raw, 0.0))) - centre[:, 0]
    # Rows that don't count may read anything.
    read = _log(jnp.where(jnp.isfinite(squares), squares, 0.0)) - centre[:, 1]
    z = weights[:, 0] * own + weights[:, 1] * read + weights[:, 2]
    scores = jnp.exp(jnp.clip(z, -_MOST, _MOST) / 2)
    return attributed._replace(scores=jnp.where(finite, scores, raw))


def choose(scores: jax.Array) -> Selected:
    """Activate the components whose gates are open.

    Args:
      scores: [R, C] scores of components with gates; those that are not finite are not active.

    Returns:
      The mask, and its weights: the same numbers, with the derivative of σ(z) for z = 2 log score.
    """
    finite = jnp.isfinite(scores) & (scores > 0)
    z = 2 * jnp.log(jnp.where(finite, scores, 1.0))
    mask = finite & (z >= 0)
    soft = jax.nn.sigmoid(z)
    weights = jnp.where(finite, mask + (soft - jax.lax.stop_gradient(soft)), 0.0)
    return Selected(mask, None, weights=weights)


def start(
    objective: Any,
    target: Target,
    x: PyTree,
    components: Components,
    block_size: int | None = None,
) -> Gated:
    """Give components gates that open where batch-wide top-k selects on examples.

    Args:
      objective: how attributions are computed, and k.
      target: the network.
      x: [N, ...] examples.
      components: `{site: Factors}`; components that have gates are returned as they are.
      block_size: number of examples that are evaluated together; None for all.
    """
    if isinstance(components, Gated):
        return components

    def look(part):
        attributed = objective.attribute(target, components, part)
        lead = attributed.scores.shape[:-1]
        squares = readings(components, attributed.records, lead)
        return attributed.scores, _log(squares), _counted(objective, part, lead)

    scores, read, here = blocks.joined(blocks.over_blocks(look, x, block_size))
    width = scores.shape[-1]
    read, here = read.reshape(-1, width), here.reshape(-1)
    threshold = _threshold(objective, scores.reshape(-1, width), here)
    mean = jnp.sum(jnp.where(here[:, None], read, 0.0), axis=0) / jnp.maximum(jnp.sum(here), 1)
    centre = jnp.stack([jnp.full(width, threshold), mean], axis=1).astype(jnp.float32)
    weights = jnp.tile(jnp.array([1.0, 0.0, 0.0]), (width, 1))
    return Gated(components, Gates(weights, centre))


def limited(
    objective: Any, target: Target, x: PyTree, components: Gated, block_size: int | None = None
) -> Gated:
    """Lower b of all gates by one number, so that at most floor(k · rows) are open on examples.

    The penalty holds L0 near k with the attributions of training steps. With those outside training
    (`evaluation_probes`), L0 differs by a few percent. Gates that keep the limit stay as they are.

    Args:
      objective: how attributions are computed, and k.
      target: the network.
      x: [N, ...] examples.
      components: components with gates.
      block_size: number of examples that are evaluated together; None for all.
    """

    def look(part):
        scores = objective.attribute(target, components, part).scores
        return scores, _counted(objective, part, scores.shape[:-1])

    scores, here = blocks.joined(blocks.over_blocks(look, x, block_size))
    threshold = _threshold(objective, scores.reshape(-1, scores.shape[-1]), here.reshape(-1))
    weights, centre = components.gates
    lower = weights.at[:, 2].add(-jnp.maximum(threshold, 0.0))
    return Gated(dict(components), Gates(lower, centre))


def _counted(objective: Any, x: PyTree, lead: tuple[int, ...]) -> jax.Array:
    """Which rows of a batch count, bool of shape `lead`."""
    valid = objective.counted(x)
    return jnp.ones(lead, bool) if valid is None else validity.of_rows(valid, lead)


def _threshold(objective: Any, scores: jax.Array, here: jax.Array) -> jax.Array:
    """A number between the log squares of the K-th and the next of scores, K = floor(k · rows).

    Args:
      objective: has k.
      scores: [R, C].
      here: bool [R], rows that count.
    """
    own = _log(jnp.square(scores))
    whole = math.floor(objective.topk * len(here))
    count = whole if objective.valid is None else jnp.floor(objective.topk * jnp.sum(here))
    usable = jnp.isfinite(own) & here[:, None]
    ordered = -jnp.sort(-jnp.where(usable, own, -jnp.inf).reshape(-1))
    last = jnp.clip(jnp.int32(count) - 1, 0, ordered.size - 1)
    least, following = ordered[last], ordered[jnp.minimum(last + 1, ordered.size - 1)]
    # There is no next one where all are chosen.
    between = jnp.where(
        (following > -jnp.inf) & (following < least), (least + following) / 2, least
    )
    return jnp.where(jnp.isfinite(between), between, 0.0)


def excess(
    selected: Selected,
    k: float | jax.Array,
    num_rows: int | jax.Array,
    whole: jax.Array | None = None,
) -> jax.Array:
    """The L0 penalty `max(0, L0 / k − 1)`, L0 the mean number of active components per row.

    Args:
      selected: the selection, with weights that gates get a gradient from.
      k: the largest L0 that costs nothing.
      num_rows: rows that count.
      whole: L0 of the batch, where the selection is that of a micro-batch: then the value is that
        of the batch, and the gradient is that of the micro-batch. Means over micro-batches give
        both of the batch.
    """
    l0 = jnp.sum(selected.mask_weights) / jnp.maximum(num_rows, 1)
    if whole is not None:
        l0 = jax.lax.stop_gradient(whole) + l0 - jax.lax.stop_gradient(l0)
    return jnp.maximum(l0 / k - 1, 0.0)


def of_saved(components: Components, saved: Any) -> Components:
    """Give components the gates that were saved with them, if there were any.

    Raises:
      UserError: gates of another number of components.
    """
    if not saved:
        return components
    gates = Gates(jnp.asarray(saved["weights"]), jnp.asarray(saved["centre"]))
    count = next(iter(components.values())).num_components
    if gates.weights.shape != (count, 3) or gates.centre.shape != (count, 2):
        raise UserError(
            f"gates must have weights [{count}, 3] and centre [{count}, 2], got "
            f"{gates.weights.shape} and {gates.centre.shape}"
        )
    return Gated(components, gates)


def _log(squares: jax.Array) -> jax.Array:
    return jnp.log(jnp.maximum(squares, 0) + _LEAST)  # a norm may round to less than 0
