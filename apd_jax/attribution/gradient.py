"""Gradient attributions: how much every component matters for the output on every example.

Letters: B batch, T positions (one axis or several), C components, L rows (B examples, or B·T
positions of them).
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from apd_jax import sites, validity
from apd_jax.attribution import directions, metrics, routes
from apd_jax.attribution.attributed import Attributed
from apd_jax.attribution.directions import Batch, Rule
from apd_jax.attribution.metrics import Metric
from apd_jax.attribution.routes import Mode
from apd_jax.components import Components, check_components, num_components
from apd_jax.errors import UserError
from apd_jax.masked.forward import summed
from apd_jax.sites import PyTree, Target
from apd_jax.validity import Valid

# The network at whose parameters derivatives are taken: `f(x, θ*)` or `f(x, Σ_c P_c)`.
Linearisation = Literal["target", "components"]


def attribute(
    target: Target,
    components: Components,
    x: PyTree,
    *,
    mode: Mode = "auto",
    source: Linearisation = "target",
    metric: Metric = "rms",
    per_position: bool = False,
    num_probes: int | None = None,
    key: jax.Array | None = None,
    valid: Valid = None,
    integration_steps: int = 1,
) -> Attributed:
    """Compute gradient attributions, with the pass they come from; see `gradient_attributions`."""
    for name, value, known in (("mode", mode, Mode), ("source", source, Linearisation)):
        if value not in get_args(known):
            raise UserError(f"{name} must be one of {get_args(known)}, got {value!r}")
    metrics.check_metric(metric)
    if mode == "sketch" and (key is None or not num_probes or num_probes < 1):
        raise UserError(
            f"mode 'sketch' needs a random key and num_probes of at least 1, got {num_probes}"
        )
    if per_position and mode == "forward":
        raise UserError("forward mode has no scores per position; use 'reverse' or 'sketch'")
    check_components(target.at(x), components)
    if source == "components":
        target = summed(target, jax.lax.stop_gradient(components))
    rule = Rule(mode, metric, per_position, num_probes or 0, integration_steps)
    count = num_components(components)
    found = directions.over_batch(
        rule,
        target,
        count,
        x,
        key,
        valid,
        lambda batch: _attributed(rule, target, components, batch),
    )
    return found._replace(scores=validity.of_scores(valid, found.scores))


def _attributed(rule: Rule, target: Target, components: Components, batch: Batch) -> Attributed:
    at = routes.linearise(target, batch.x, rule.metric, rule.per_position, batch.valid)
    outputs = at.outputs
    at = at._replace(outputs=validity.keep(batch.valid, outputs))
    width = metrics.num_directions(rule.metric, at.outputs)
    if rule.mode == "auto":
        backwards = rule.per_position or routes.only_backwards(at)
        cheapest: Mode = "reverse" if backwards else routes.cheaper(at, components, width)
        rule = rule._replace(mode=cheapest)
    elif rule.mode in ("forward", "literal") and routes.only_backwards(at):
        raise UserError(
            f"mode {rule.mode!r} needs derivatives along a direction, which a custom_vjp in the "
            "network does not have; use 'reverse' or 'sketch'"
        )

    def scores(some):
        return directions.root(_squares(rule, target, at, some, batch))

    shares = 1
    if rule.mode in ("forward", "reverse"):
        shares = _num_shares(components, sites.batch_size(batch.x) * width)
    if shares == 1:
        found = scores(components)
    else:  # components don't interact either: shares of them give the same result
        parts = jax.tree.map(lambda leaf: leaf.reshape(shares, -1, *leaf.shape[1:]), components)
        found = jax.lax.map(scores, parts)
        found = found.reshape(-1, *found.shape[2:])
    return Attributed(routes.in_rows(at, found), outputs, at.records)


def _squares(rule: Rule, target, at, components, batch: Batch) -> jax.Array:
    """Squared attributions, [C, L]."""
    if rule.mode in ("reverse", "sketch"):
        return directions.squares(
            rule,
            target,
            at,
            batch,
            lambda at, some: routes.along_directions(at, components, some),
        )

    def outputs(position=None):
        along = directions.averaged(
            rule,
            target,
            at,
            batch,
            lambda at: routes.along_outputs(at, components, rule.mode, position),
        )
        return metrics.squared(rule.metric, at.outputs, along)

    if not rule.per_position:
        return outputs()
    length = math.prod(next(iter(at.zeros.values())).shape[1 : at.lead])
    table = jax.lax.map(outputs, jnp.arange(length))  # [T, C, B]
    return jnp.moveaxis(table, 0, -1).reshape(table.shape[1], -1)


def _num_shares(components: Components, outputs: int) -> int:
    """Number of equal shares of the components, so that tangents [share, O, B] stay small.

    Dividing components copies their factors, which pays only where tangents are larger.
    """
    count = num_components(components)
    factors = sum(leaf.size for leaf in jax.tree.leaves(components))
    wanted = count * outputs // directions.BLOCK_ELEMENTS
    if wanted < 2 or factors > count * outputs:
        return 1
    fitting = (n for n in range(wanted, 2 * wanted) if count % n == 0)
    return next(fitting, 1)


def gradient_attributions(
    target: Target,
    components: Components,
    x: PyTree,
    *,
    mode: Mode = "auto",
    source: Linearisation = "target",
    metric: Metric = "rms",
    per_position: bool = False,
    num_probes: int | None = None,
    key: jax.Array | None = None,
    valid: Valid = None,
) -> jax.Array:
    """The paper's attributions: RMS over outputs of the derivative along every component.

    `A_c(x) = sqrt( (1/O) Σ_o ( Σ_l <∂f_o(x, θ)/∂θ_l, P_{c,l}> )² )` (section 2.2 of the paper),
    at θ = θ* or θ = Σ_c P_c. All routes but the sketch are exact; products run at float32 on every
    backend.

    Args:
      target: the network.
      components: `{site: Factors}` with C components.
      x: [B, ...] inputs.
      mode: `"forward"` pushes the C components' tangents through the linearised network,
        `"reverse"` pulls the O outputs back to the sites, `"auto"` traces both and takes the one
        with fewer multiply-adds, `"sketch"` pulls back random directions, an unbiased estimate of
        A² whose cost does not grow with O, `"literal"` materialises every component.
      source: network to linearise, the target (`"target"`) or the component model
        (`"components"`).
      metric: measure of the change of the outputs: `"rms"`, `"fisher"`, or a function of the
        outputs (`metrics.squared`).
      per_position: compute a score for every position of outputs [B, T, O], T of one axis or
        several: how much the outputs change if the component changes the weights at this position
        only.
      num_probes: number of random directions of the sketch.
      key: PRNG key for the random directions of the sketch.
      valid: bool [B] or [B, T], which examples or positions count: the mean over outputs is over
        those, and the scores of the rest are 0. None where everything counts.

    Returns:
      [B, C] scores, not negative; [B, T, C] per position.

    Raises:
      UserError: unknown mode, source or metric, components that do not fit the target's sites, a
        sketch without key or probes, outputs that are not real.
    """
    return attribute(
        target,
        components,
        x,
        mode=mode,
        source=source,
        metric=metric,
        per_position=per_position,
        num_probes=num_probes,
        key=key,
        valid=valid,
    ).scores
