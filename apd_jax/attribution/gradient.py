"""Gradient attributions: how much every component matters for the output on every example.

Letters: B batch, T positions (one axis or several), C components, O outputs, n directions of the
outputs.
"""

import math

import jax
import jax.numpy as jnp

from apd_jax import blocks, sites, validity
from apd_jax.attribution import division, metrics, routes
from apd_jax.attribution.attributed import Attributed
from apd_jax.attribution.metrics import Metric
from apd_jax.attribution.options import DEFAULT, Linearisation, Options
from apd_jax.attribution.routes import Mode
from apd_jax.components import Components, check_components, num_components
from apd_jax.errors import UserError
from apd_jax.masked.forward import summed
from apd_jax.sites import PyTree, Target
from apd_jax.validity import Valid

_DIRECTIONS = 128  # output directions that are pulled back at once


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
    options = Options(mode, source, metric, per_position, num_probes)
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
    options.check()
    check_components(target.at(x), components)
    if options.source == "components":
        target = summed(target, jax.lax.stop_gradient(components))
    keys = None
    if options.mode == "sketch":
        if key is None:
            raise UserError("mode 'sketch' needs a PRNG key for its directions, got key=None")
        # Every example has its own key, so that its directions do not depend on its block.
        keys = jax.random.split(key, sites.batch_size(x))
    with jax.default_matmul_precision("highest"):
        found = sites.over_examples(
            lambda inputs, *own: _in_blocks(options, target, components, inputs, *own),
            target,
            x,
            keys,
            valid,
        )
    return found._replace(scores=validity.of_scores(valid, found.scores))


def _in_blocks(options: Options, target, components, x, keys=None, valid=None) -> Attributed:
    """Compute attributions block by block, so that tangents stay in cache."""
    number = 1
    if options.mode not in ("literal", "sketch"):
        width = metrics.num_directions(options.metric, jax.eval_shape(target, x))
        number = division.num_blocks(sites.batch_size(x), num_components(components) * width)
    if number == 1:
        return _attributed(options, target, components, x, keys, valid)

    def one(part):
        inputs, counted = part
        return _attributed(options, target, components, inputs, None, counted)

    return blocks.joined(jax.lax.map(one, blocks.divided((x, valid), number)))


def _attributed(options: Options, target, components, x, keys, valid) -> Attributed:
    at = routes.linearise(target, x, options.metric, options.per_position, valid)
    outputs = at.outputs
    # Outputs that do not count may be NaN; as zeros they do no harm in the metric. The ones that
    # are returned stay as they are.
    at = at._replace(outputs=validity.keep(valid, outputs))
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

    def squares(some):
        return _squares(options, target, at, some, x, keys, valid)

    shares = 1
    if options.mode in ("forward", "reverse"):
        shares = division.num_shares(components, sites.batch_size(x) * width)
    if shares == 1:
        scores = _root(squares(components))
    else:
        parts = blocks.divided(components, shares)
        scores = blocks.joined(jax.lax.map(lambda part: _root(squares(part)), parts))
    lead = next(iter(at.zeros.values())).shape[: at.lead]
    scores = jnp.moveaxis(scores.reshape(-1, *lead), 0, -1)
    return Attributed(scores, outputs, at.records)


def _squares(options: Options, target, at, components, x, keys, valid) -> jax.Array:
    """Squared attributions, [C, L]."""
    if options.mode == "literal" and options.per_position:

        def one(position):
            along = _averaged(
                options,
                target,
                at,
                x,
                valid,
                lambda at: routes.along_outputs(at, components, "literal", position),
            )
            return metrics.squared(options.metric, at.outputs, along)

        # By definition: one position at a time, at which alone the weights change.
        length = math.prod(next(iter(at.zeros.values())).shape[1 : at.lead])
        table = jax.lax.map(one, jnp.arange(length))  # [T, C, B]
        return jnp.moveaxis(table, 0, -1).reshape(table.shape[1], -1)
    if options.mode in ("forward", "literal"):
        along = _averaged(
            options,
            target,
            at,
            x,
            valid,
            lambda at: routes.along_outputs(at, components, options.mode),
        )
        return metrics.squared(options.metric, at.outputs, along)

    def pulled(directions):
        along = _averaged(
            options,
            target,
            at,
            x,
            valid,
            lambda at: routes.along_directions(at, components, directions),
        )
        return jnp.sum(jnp.square(along), axis=1)

    if options.mode == "sketch":
        return pulled(_probes(options, at.outputs, keys))
    width = metrics.num_directions(options.metric, at.outputs)
    # Pulling back all O directions at once needs their cotangents at every site at once. Squares
    # add up over directions, so that they can be taken in groups; those past the last are zeros.
    if width <= _DIRECTIONS:
        return pulled(metrics.directions(options.metric, at.outputs, jnp.arange(width)))
    starts = jnp.arange(0, width, _DIRECTIONS)
    some = jnp.arange(_DIRECTIONS)
    return _sum_map(
        lambda start: pulled(metrics.directions(options.metric, at.outputs, start + some)), starts
    )


def _sum_map(function, starts) -> jax.Array:
    """Sum a function over an array of numbers, evaluated one after another to bound memory."""
    shape = jax.eval_shape(function, starts[0])
    zero = jnp.zeros(shape.shape, shape.dtype)
    return jax.lax.scan(lambda total, start: (total + function(start), None), zero, starts)[0]


def _probes(options: Options, outputs: PyTree, keys: jax.Array) -> jax.Array:
    """Draw random directions [num_probes, B, O], those of an example from its own key."""

    def one(key, output):
        alone = jax.tree.map(lambda leaf: leaf[None], output)
        return metrics.probes(options.metric, key, alone, options.num_probes)[:, 0]

    return jax.vmap(one, out_axes=1)(keys, outputs)


def _averaged(options: Options, target, at, x, valid, along) -> jax.Array:
    """Derivatives at θ*, or their mean over `t·θ*` for t in (0, 1] (integrated gradients).

    The derivatives are averaged before they are squared: the squares of a mean, not their mean.
    """
    steps = options.integration_steps
    if steps == 1:
        return along(at)

    def scaled(t):
        weights = {name: t * weight for name, weight in target.weights.items()}
        there = target.with_weights(weights)
        return along(routes.linearise(there, x, options.metric, options.per_position, valid))

    return _sum_map(scaled, jnp.arange(1, steps + 1) / steps) / steps


def _root(squares: jax.Array) -> jax.Array:
    """Square roots with a gradient of 0 at 0; NaN stays NaN.

    The inner `where` keeps `sqrt` away from 0: its infinite slope there would turn the gradient of
    the branch that is not taken, 0 · ∞, into NaN.
    """
    return jnp.where(squares != 0, jnp.sqrt(jnp.where(squares != 0, squares, 1.0)), 0.0)
