"""Gradient attributions: how much every component matters for the output on every example.

Letters: B batch, T positions (one axis or several), C components, L rows (B examples, or B·T
positions of them).
"""

import math

import jax
import jax.numpy as jnp

from apd_jax import sites, validity
from apd_jax.attribution import directions, division, metrics, routes
from apd_jax.attribution.attributed import Attributed
from apd_jax.attribution.directions import Batch
from apd_jax.attribution.metrics import Metric
from apd_jax.attribution.options import DEFAULT, Linearisation, Options
from apd_jax.attribution.routes import Mode
from apd_jax.components import Components, check_components, check_given, num_components
from apd_jax.config_fields import values
from apd_jax.errors import UserError
from apd_jax.masked.forward import full_model
from apd_jax.programs import partition
from apd_jax.sites import PyTree, Target
from apd_jax.validity import Valid


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
        those, and the scores of the rest are 0. None where everything counts. Or a function of x
        that gives it.

    Returns:
      [B, C] scores, not negative; [B, T, C] per position.

    Raises:
      UserError: unknown mode, source or metric, components that do not fit the target's sites, a
        sketch without key or probes, outputs that are not real, a `valid` of another form.
    """
    options = Options(mode, source, metric, per_position, values.number(num_probes))
    options.check(key)
    x = check_given(target, components, x)
    valid = validity.as_given(valid, x)
    return attribute(target, components, x, options, key=key, valid=valid).scores


def attribute(
    target: Target,
    components: Components,
    x: PyTree,
    options: Options = DEFAULT,
    *,
    key: jax.Array | None = None,
    valid: Valid = None,
) -> Attributed:
    """Compute gradient attributions, with the pass they come from; see `gradient_attributions`."""
    options.check(key)
    check_components(target.at(x), components)
    if options.source == "components":
        target = full_model(target, jax.lax.stop_gradient(components))
    found = directions.over_batch(
        options,
        target,
        num_components(components),
        x,
        key,
        valid,
        lambda batch: _attributed(options, target, components, batch),
    )
    return found._replace(scores=validity.of_scores(valid, found.scores))


def _attributed(
    options: Options, target: Target, components: Components, batch: Batch
) -> Attributed:
    at = routes.linearise(target, batch.x, options.metric, options.per_position, batch.valid)
    # Outputs that do not count may be NaN; as zeros they do no harm in the metric. The ones that
    # are returned stay as they are.
    outputs = at.outputs
    at = at._replace(outputs=validity.keep(batch.valid, outputs))
    width = metrics.num_directions(options.metric, at.outputs)
    if options.mode == "auto":
        # A tangent that is pushed forward mixes the positions at which it started: scores of single
        # positions need the pull, which ends at rows of positions.
        backwards = options.per_position or routes.only_backwards(at)
        cheapest: Mode = "reverse" if backwards else routes.cheaper(at, components, width)
        options = options._replace(mode=cheapest)
    elif options.mode in ("forward", "literal") and routes.only_backwards(at):
        raise UserError(
            f"mode {options.mode!r} needs derivatives along a direction, which a custom_vjp in the "
            "network does not have; use 'reverse' or 'sketch'"
        )

    def scores(some):
        return directions.root(_squares(options, target, at, some, batch))

    shares = 1
    if options.mode in ("forward", "reverse"):
        shares = division.num_shares(components, sites.batch_size(batch.x) * width)
    if shares == 1:
        found = scores(components)
    else:
        found = partition.joined_shares(jax.lax.map(scores, partition.shares(components, shares)))
    return Attributed(routes.in_rows(at, found), outputs, at.records)


def _squares(options: Options, target: Target, at, components, batch: Batch) -> jax.Array:
    """Squared attributions, [C, L]."""
    if options.mode in ("reverse", "sketch"):
        return directions.squares(
            options,
            target,
            at,
            batch,
            lambda at, some: routes.along_directions(at, components, some),
        )

    def outputs(position=None):
        along = directions.averaged(
            options,
            target,
            at,
            batch,
            lambda at: routes.along_outputs(at, components, options.mode, position),
        )
        return metrics.squared(options.metric, at.outputs, along)

    if not options.per_position:
        return outputs()
    # By definition: one position at a time, at which alone the weights change.
    length = math.prod(next(iter(at.zeros.values())).shape[1 : at.lead])
    table = jax.lax.map(outputs, jnp.arange(length))  # [T, C, B]
    return jnp.moveaxis(table, 0, -1).reshape(table.shape[1], -1)
