"""The terms of the loss, each a function of one step's passes through the network.

Letters: B batch, T positions, C components.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from apd_jax import randomness, sites, validity
from apd_jax.attribution import Attributed
from apd_jax.components import Components
from apd_jax.masked import forward
from apd_jax.masked.remat import recomputed
from apd_jax.objective import gates, losses, lp_losses, partial
from apd_jax.objective.distances import distance
from apd_jax.objective.selected import Selected
from apd_jax.sites import PyTree, Target


@dataclasses.dataclass(frozen=True)
class Step:
    """The arguments of the loss terms; passes through the network are shared between them.

    `key` is the PRNG key for the random masks; without one they are the same at every call.
    `part_of_k` is what k is multiplied by at this step; None for 1. `other` is a batch of the other
    data of a targeted decomposition. `l0` is the mean number of active components of a row in the
    whole batch where x is a micro-batch, else None.
    """

    objective: Any
    target: Target
    components: Components
    x: PyTree
    attributed: Attributed
    chosen: Selected
    key: jax.Array | None = None
    part_of_k: jax.Array | None = None
    other: PyTree = None
    l0: jax.Array | None = None

    @functools.cached_property
    def valid(self) -> validity.Valid:
        """Which examples or positions count; see `validity`."""
        return self.objective.counted(self.x)

    @functools.cached_property
    def valid_rows(self) -> jax.Array | None:
        """Which rows of the mask count, bool [R]; None where all do."""
        if self.valid is None:
            return None
        return validity.of_rows(self.valid, self.chosen.mask.shape[:-1]).reshape(-1)

    @functools.cached_property
    def uses(self) -> dict[str, float]:
        """How often each site is used in a pass; a use of half of a site counts as a half."""
        shares: dict[str, float] = collections.defaultdict(float)
        for record in self.attributed.records.values():
            shares[record.name] += record.placement.share
        return dict(shares)

    @functools.cached_property
    def masked(self) -> tuple[PyTree, sites.Records]:
        """Outputs and records of the pass with the active components alone."""
        positions, remat = self.objective.per_position, self.objective.routes.remat
        # The grouped route mixes examples in one table, so that it needs the whole batch at once. A
        # network that is run example by example takes the dense one.
        if sites.batched(self.target, self.x):
            route = self.objective.routes.masked_route

            def whole(components):
                operation = forward.masked_by(
                    route, components, self.chosen.mask_weights, self.chosen.pairs
                )
                return sites.run(self.target, self.x, operation, positions=positions)

            return recomputed(remat, whole)(self.components)

        def one_by_one(components):
            def alone(x, mask):
                operation = forward.masked(components, mask)
                return sites.run(self.target, x, operation, positions=positions)

            return sites.over_examples(alone, self.target, self.x, self.chosen.mask_weights)

        return recomputed(remat, one_by_one)(self.components)

    def first(self, count: int) -> "Step":
        """The same for the first examples alone; for terms that compare outputs."""
        x, outputs, mask, weights = jax.tree.map(
            lambda leaf: leaf[:count],
            (self.x, self.attributed.outputs, self.chosen.mask, self.chosen.weights),
        )
        attributed = self.attributed._replace(outputs=outputs)
        chosen = Selected(mask, None, weights=weights)
        return dataclasses.replace(self, x=x, attributed=attributed, chosen=chosen)

    @property
    def num_rows(self) -> int | jax.Array:
        """Rows of the mask that count: B, or B·T, where all do."""
        return self.objective.num_rows(self.chosen, self.x)

    def rows(self, scores: jax.Array) -> jax.Array:
        """Scores as a table, [rows, C]."""
        return scores.reshape(-1, scores.shape[-1])


SIMPLICITY_NORMS = {
    "schatten": losses.simplicity,
    "schatten_over_frobenius": losses.scale_free_simplicity,
}


def _faithfulness(step: Step) -> jax.Array:
    return losses.faithfulness(step.components, step.target.weights, step.uses)


def _distance(step: Step, outputs: PyTree) -> jax.Array:
    loss = step.objective.minimality_loss
    return distance(loss, outputs, step.attributed.outputs, step.valid)


def _minimality(step: Step) -> jax.Array:
    return _distance(step, step.masked[0])


def _partial(step: Step) -> jax.Array:
    key = randomness.root(0) if step.key is None else step.key
    masks = step.objective.masks
    # Fresh r at every step: the loss is an expectation over them.
    r = partial.draw(masks, randomness.stream_of_step(key, "partial masks"), step.chosen.mask.shape)
    attacked = masks.num_attacked(len(r))
    if attacked:
        first = step.first(attacked)
        # The adversary's steps are not differentiated: at its end point the gradient in the
        # components is that of the loss with r fixed, as in adversarial training.
        fixed = dataclasses.replace(first, components=jax.lax.stop_gradient(step.components))
        changed = partial.attack(masks, lambda r: _scaled_distance(fixed, r), r[:attacked])
        r = jnp.concatenate([changed, r[attacked:]])
    return _scaled_distance(step, r)


def _scaled_distance(step: Step, r: jax.Array) -> jax.Array:
    """Distance of the outputs with active components whole and the others scaled by r.

    The network runs on `Σ_c (s_c + (1 − s_c) r_c) P_c`, and on `r_Δ (θ* − Σ_c P_c)` beside it where
    r has a column for the remainder.
    """
    share = None
    if step.objective.masks.remainder:
        r, share = r[..., :-1], r[..., -1]
    mask = partial.scaled(step.chosen.mask_weights, r)
    if step.valid_rows is not None:
        mask = mask * step.valid_rows.reshape(*mask.shape[:-1], 1)
        share = None if share is None else share * step.valid_rows.reshape(share.shape)

    def run(components, mask, share):
        return forward.masked_apply(step.target, components, step.x, mask, share)

    run = recomputed(step.objective.routes.remat, run)
    return _distance(step, run(step.components, mask, share))


def _other(step: Step) -> jax.Array:
    """Distance on other data, `d(f(x, Σ_c s_c(x) P_c + Δ), f(x, θ*))` with `Δ = θ* − Σ_c P_c`."""
    objective, target, x = step.objective, step.target, step.other
    key = randomness.stream_of_step(randomness.root(0) if step.key is None else step.key, "other")
    fixed = gates.without_gradient(step.components)
    attributed = objective.attribute(target, fixed, x, key)
    chosen = objective.select(attributed.scores, x, step.part_of_k)
    whole = jnp.ones(chosen.mask.shape[:-1])
    outputs = forward.masked_apply(target, step.components, x, chosen.mask_weights, whole)
    valid = objective.counted(x)
    return distance(objective.minimality_loss, outputs, attributed.outputs, valid)


def _l0(step: Step) -> jax.Array:
    k = step.objective.topk * (1.0 if step.part_of_k is None else step.part_of_k)
    return gates.excess(step.chosen, k, step.num_rows, step.l0)


def _simplicity(step: Step) -> jax.Array:
    return SIMPLICITY_NORMS[step.objective.simplicity_norm](
        step.components,
        step.chosen.counts(),
        p=step.objective.schatten_p,
        uses=step.uses,
        batch_size=step.num_rows,
    )


def _activation(step: Step) -> jax.Array:
    names = [step.target.sites.full_name(name) for name in step.objective.hidden_sites]
    return losses.hidden_activations(
        step.masked[1],
        step.attributed.records,
        names,
        step.objective.hidden_activation,
        step.objective.hidden_uses,
        step.valid,
    )


def _output(step: Step) -> jax.Array:
    full = forward.full_model(step.target, step.components)(step.x)
    return _distance(step, full)


def _lp_minimality(step: Step) -> jax.Array:
    scores = step.rows(step.attributed.scores)
    return lp_losses.lp_minimality(scores, p=step.objective.lp_p, rows=step.valid_rows)


def _lp_simplicity(step: Step) -> jax.Array:
    objective = step.objective
    return lp_losses.lp_simplicity(
        step.components,
        step.rows(step.attributed.scores),
        p=objective.lp_p,
        schatten_p=objective.schatten_p,
        uses=step.uses,
        rows=step.valid_rows,
    )


class Term(NamedTuple):
    """A loss term, and what the objective and the normalisation have to know about it.

    Attributes:
      value: function from a step to the term's value.
      selects: whether it depends on the active components, so that a selection is required.
      flows: whether gradients flow to the components through their attributions.
      unit: value that relative losses divide it by: the term's value without any component
        ("nothing"), or with the target as a single component ("whole"); None where it is not
        divided.
      error: whether it measures an error of the components; rounds of refinement compare errors.
      saved: name of its scale in checkpoints, where it is not the term's: that of an earlier
        version, so that its checkpoints can be read.
      over: what it is a mean over: the outputs' entries, the rows of the mask, or nothing that
        belongs to a batch.
    """

    value: Callable[[Step], jax.Array]
    selects: bool = False
    flows: bool = False
    unit: Literal["nothing", "whole"] | None = None
    error: bool = True
    saved: str | None = None
    over: Literal["outputs", "rows", "weights"] = "outputs"


# A loss term has its entry here, and its coefficient in `objective.Coefficients`.
TERMS: dict[str, Term] = {
    "faithfulness": Term(_faithfulness, unit="nothing", over="weights"),
    "minimality": Term(_minimality, selects=True, unit="nothing"),
    # Splitting a mechanism in halves lowers its simplicity loss, so that it is no error.
    "simplicity": Term(_simplicity, selects=True, unit="whole", error=False, over="rows"),
    "activation": Term(_activation, selects=True, unit="nothing"),
    "output": Term(_output, unit="nothing"),
    "lp_minimality": Term(_lp_minimality, flows=True, over="rows"),
    "lp_simplicity": Term(_lp_simplicity, flows=True, error=False, over="rows"),
    "partial": Term(_partial, selects=True, unit="nothing", saved="stochastic"),
    "other": Term(_other, selects=True, unit="nothing"),
    "l0": Term(_l0, selects=True, error=False, over="rows"),
}
