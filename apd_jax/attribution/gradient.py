"""Gradient attributions: how much every component matters for the output on every example.

Letters: B batch, T positions (one axis or several), C components, O outputs, n directions of the
outputs.
"""

import math
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from apd_jax import sites, validity
from apd_jax.attribution import metrics, routes
from apd_jax.attribution.attributed import Attributed
from apd_jax.attribution.metrics import Metric
from apd_jax.attribution.routes import Mode
from apd_jax.components import Components, check_components, num_components
from apd_jax.errors import UserError
from apd_jax.masked.forward import summed
from apd_jax.sites import PyTree, Target
from apd_jax.validity import Valid

# Tangents of a block: 2 MB in float32, about the size of a core's own cache. Smaller blocks would
# repeat the products that don't depend on the batch more often than the cache makes up for.
_BLOCK_ELEMENTS = 500_000
_MIN_BLOCK = 256
_DIRECTIONS = 128  # output directions that are pulled back at once
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
    batch_size = sites.batch_size(x)
    check_components(target.at(x), components)
    if source == "components":
        target = summed(target, jax.lax.stop_gradient(components))
    rule = _Rule(mode, metric, per_position, num_probes or 0, integration_steps)
    # Every example has its own key, so that its probes do not depend on the division into blocks.
    keys = None if key is None or mode != "sketch" else jax.random.split(key, batch_size)
    with jax.default_matmul_precision("highest"):
        found = sites.over_examples(
            lambda inputs, *own: _in_blocks(rule, target, components, inputs, *own),
            target,
            x,
            keys,
            valid,
        )
    return found._replace(scores=validity.of_scores(valid, found.scores))


class _Rule(NamedTuple):
    mode: Mode
    metric: Metric
    per_position: bool
    num_probes: int
    integration_steps: int


def _in_blocks(rule: _Rule, target, components, x, keys=None, valid=None) -> Attributed:
    """Compute attributions block by block, so that tangents stay in cache.

    Examples don't interact in a linearised network, so blocks of the batch give the same result.
    """
    blocks = 1 if rule.mode in ("literal", "sketch") else _num_blocks(rule, target, components, x)
    if blocks == 1:
        return _attributed(rule, target, components, x, keys, valid)
    parts = jax.tree.map(lambda leaf: leaf.reshape(blocks, -1, *leaf.shape[1:]), (x, valid))
    found = jax.lax.map(
        lambda part: _attributed(rule, target, components, part[0], None, part[1]), parts
    )
    return jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), found)


def _attributed(rule: _Rule, target, components, x, keys, valid) -> Attributed:
    at = routes.linearise(target, x, rule.metric, rule.per_position, valid)
    outputs = at.outputs
    at = at._replace(outputs=validity.keep(valid, outputs))
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

    def squares(some):
        return _squares(rule, target, at, some, x, keys, valid)

    shares = 1
    if rule.mode in ("forward", "reverse"):
        shares = _num_shares(components, sites.batch_size(x) * width)
    if shares == 1:
        scores = _root(squares(components))
    else:  # components don't interact either: shares of them give the same result
        parts = jax.tree.map(lambda leaf: leaf.reshape(shares, -1, *leaf.shape[1:]), components)
        scores = jax.lax.map(lambda part: _root(squares(part)), parts)
        scores = scores.reshape(-1, *scores.shape[2:])
    lead = next(iter(at.zeros.values())).shape[: at.lead]
    scores = jnp.moveaxis(scores.reshape(-1, *lead), 0, -1)
    return Attributed(scores, outputs, at.records)


def _squares(rule: _Rule, target, at, components, x, keys, valid) -> jax.Array:
    """Squared attributions, [C, L]."""
    if rule.mode == "literal" and rule.per_position:

        def one(position):
            along = _averaged(
                rule,
                target,
                at,
                x,
                valid,
                lambda at: routes.along_outputs(at, components, "literal", position),
            )
            return metrics.squared(rule.metric, at.outputs, along)

        length = math.prod(next(iter(at.zeros.values())).shape[1 : at.lead])
        table = jax.lax.map(one, jnp.arange(length))  # [T, C, B]
        return jnp.moveaxis(table, 0, -1).reshape(table.shape[1], -1)
    if rule.mode in ("forward", "literal"):
        along = _averaged(
            rule, target, at, x, valid, lambda at: routes.along_outputs(at, components, rule.mode)
        )
        return metrics.squared(rule.metric, at.outputs, along)

    def pulled(directions):
        along = _averaged(
            rule,
            target,
            at,
            x,
            valid,
            lambda at: routes.along_directions(at, components, directions),
        )
        return jnp.sum(jnp.square(along), axis=0).T

    if rule.mode == "sketch":
        return pulled(_probes(rule, at.outputs, keys))
    width = metrics.num_directions(rule.metric, at.outputs)
    if width <= _DIRECTIONS:
        return pulled(metrics.directions(rule.metric, at.outputs, jnp.arange(width)))
    starts = jnp.arange(0, width, _DIRECTIONS)
    some = jnp.arange(_DIRECTIONS)
    return _sum_map(
        lambda start: pulled(metrics.directions(rule.metric, at.outputs, start + some)), starts
    )


def _sum_map(function, starts) -> jax.Array:
    """Sum a function over an array of numbers, evaluated one after another to bound memory."""
    shape = jax.eval_shape(function, starts[0])
    zero = jnp.zeros(shape.shape, shape.dtype)
    return jax.lax.scan(lambda total, start: (total + function(start), None), zero, starts)[0]


def _probes(rule: _Rule, outputs: PyTree, keys: jax.Array) -> jax.Array:
    """Draw random directions [num_probes, B, O], those of an example from its own key."""

    def one(key, output):
        alone = jax.tree.map(lambda leaf: leaf[None], output)
        return metrics.probes(rule.metric, key, alone, rule.num_probes)[:, 0]

    return jax.vmap(one, out_axes=1)(keys, outputs)


def _averaged(rule: _Rule, target, at, x, valid, along) -> jax.Array:
    """Derivatives at θ*, or their mean over `t·θ*` for t in (0, 1] (integrated gradients).

    The derivatives are averaged before they are squared: the squares of a mean, not their mean.
    """
    steps = rule.integration_steps
    if steps == 1:
        return along(at)

    def scaled(t):
        weights = {name: t * weight for name, weight in target.weights.items()}
        there = target.with_weights(weights)
        return along(routes.linearise(there, x, rule.metric, rule.per_position, valid))

    return _sum_map(scaled, jnp.arange(1, steps + 1) / steps) / steps


def _root(squares: jax.Array) -> jax.Array:
    """Square roots with a gradient of 0 at 0; NaN stays NaN.

    The inner `where` keeps `sqrt` away from 0: its infinite slope there would turn the gradient of
    the branch that is not taken, 0 · ∞, into NaN.
    """
    return jnp.where(squares != 0, jnp.sqrt(jnp.where(squares != 0, squares, 1.0)), 0.0)


def _num_blocks(rule: _Rule, target: Target, components: Components, x: PyTree) -> int:
    """Number of equal blocks of the batch, so that tangents [C, O, block] stay small."""
    batch_size = sites.batch_size(x)
    width = metrics.num_directions(rule.metric, jax.eval_shape(target, x))
    wanted = batch_size * num_components(components) * width // _BLOCK_ELEMENTS
    blocks = 1
    while blocks * 2 <= wanted and batch_size % (blocks * 2) == 0:
        blocks *= 2
    return blocks if batch_size // blocks >= _MIN_BLOCK else 1


def _num_shares(components: Components, outputs: int) -> int:
    """Number of equal shares of the components, so that tangents [share, O, B] stay small.

    Dividing components copies their factors, which pays only where tangents are larger.
    """
    count = num_components(components)
    factors = sum(leaf.size for leaf in jax.tree.leaves(components))
    wanted = count * outputs // _BLOCK_ELEMENTS
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
