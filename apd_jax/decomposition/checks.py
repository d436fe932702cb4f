"""Checks of a network before any training, so that what follows is right.

Letters: B batch.
"""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import randomness, sites, validity
from apd_jax.attribution.metrics import Metric, quantities
from apd_jax.components import Components, check_components, init_components, num_components
from apd_jax.decomposition.derivative_checks import check_any_derivative, check_derivatives
from apd_jax.decomposition.rounding import DIFFERENCE
from apd_jax.errors import UserError
from apd_jax.objective.objective import Objective
from apd_jax.objective.selected import Selected
from apd_jax.objective.terms import TERMS, Step
from apd_jax.programs.compiled import jit_with_network
from apd_jax.sites import PyTree, Target
from apd_jax.sites.closeness import close
from apd_jax.sites.given_arrays import as_arrays
from apd_jax.sites.program import ONE_EXAMPLE, takes_batches_of, trace
from apd_jax.training.config import Settings

_MIXED = (
    "the output of an example depends on the other examples of its batch, as with batch statistics "
    "in training mode, or on its place in the batch, as with dropout: run the network in "
    "evaluation mode (train=False, model.eval()), or make constant what the examples share; or the "
    "batch is not the first axis within the network (batch_first=True of torch's layers)"
)


@jax.default_matmul_precision("highest")  # of all checks, so that they share traces
def check_target(target: Target, x: PyTree, objective: Objective | None = None) -> None:
    """Run the network once as the decomposition will, so that mistakes show before training.

    Args:
      target: the network.
      x: [B, ...] a few different inputs; with fewer than 3, examples that mix are not detected.
      objective: objective of the decomposition; None to check only what all decompositions need.

    Raises:
      UserError: no target, inputs that the network does not take, outputs that are no real
        numbers, parameters that are not finite or narrower than float32, examples that mix,
        derivatives that the network defines otherwise than its own equations, unknown hidden
        sites, inputs that the selection can't count, a `valid` that does not fit them.
    """
    sites.check_is_target(target)
    _check_finite(target.params)
    x = as_arrays(x)
    target.at(x)
    _check_weights(target)
    # Says so where its sites are known and x is new.
    outputs = trace(target.apply_fn, target.params, x).outputs()
    _check_batch_axis(target, x, outputs)
    metric: Metric = "rms" if objective is None else objective.metric
    valid = None if objective is None else objective.counted(x)
    jax.eval_shape(lambda outputs: quantities(metric, outputs, sites.batch_size(x), valid), outputs)
    check_any_derivative(target, x)
    if objective is not None:
        for name in objective.hidden_sites:
            target.sites.full_name(name)
        _check_attributions(target, x, objective)
        if valid is not None:
            _check_terms(target, x, objective)
            target = without_the_rest(target, x, objective)
            _check_gradients(target, x)
    check_outputs(target, x, objective)
    _check_apart(target, x)
    check_derivatives(target, x)


def check_concrete(*arguments: PyTree) -> None:
    """Raise UserError for arrays without values, as in a function that JAX traces."""
    # JAX is going to refuse iterators that nothing declares to be leaves.
    for leaf in jax.tree.leaves(arguments, is_leaf=lambda node: isinstance(node, Iterator)):
        if isinstance(leaf, jax.core.Tracer):
            raise UserError(
                "decompose runs a training and can't be traced: call it outside of jit, grad, vmap "
                f"and scan; got {leaf!r:.100}"
            )


def output_shape(target: Target, example: PyTree) -> tuple[int, ...]:
    """Shape of an example's first output."""
    outputs = jax.eval_shape(lambda network, x: network(x), target, example)
    return jax.tree.leaves(outputs)[0].shape[1:]


def _check_batch_axis(target: Target, x: PyTree, outputs: PyTree) -> None:
    """Refuse single examples where batches are expected, as a list of examples is read."""
    size = sites.batch_size(x)
    if all(leaf.shape[:1] == (size,) for leaf in jax.tree.leaves(outputs)):
        return
    if takes_batches_of(target.apply_fn, target.params, x):
        raise UserError(ONE_EXAMPLE)


def _check_attributions(target: Target, x: PyTree, objective: Objective) -> None:
    """Trace the attributions, so that what they refuse is refused now."""

    def scores_of(inputs):
        component = init_components(randomness.root(0), target, num_components=1, rank=1)
        return objective.attribute(target, component, inputs).scores

    scores = jax.eval_shape(scores_of, x)
    if objective.selection == "exact":  # of other rules, k need not fit so few examples
        jax.eval_shape(objective.select, scores, x)


def _check_terms(target: Target, x: PyTree, objective: Objective) -> None:
    """Trace the losses, so that a loss that can't leave out what does not count is refused now."""
    names = list(objective.coefficients.used())

    def values(inputs):
        component = init_components(randomness.root(0), target, num_components=1, rank=1)
        attributed = objective.attribute(target, component, inputs)
        mask = jnp.ones(attributed.scores.shape, bool)
        chosen = Selected(mask, None)
        step = Step(objective, target, component, inputs, attributed, chosen, other=inputs)
        return [TERMS[name].value(step) for name in names]

    jax.eval_shape(values, x)


def without_the_rest(target: Target, x: PyTree, objective: Objective) -> Target:
    """The network with zeros for outputs that don't count, which are not checked."""

    def apply_fn(params, inputs):
        return validity.keep(objective.counted(inputs), target.apply_fn(params, inputs))

    return Target(apply_fn, target.params, list(target.sites), inputs=x)


@jit_with_network
def _gradients(target: Target, x: PyTree) -> PyTree:
    """Gradient of the sum of all outputs with respect to the weights of the sites."""
    return jax.grad(lambda w: jnp.sum(quantities("rms", target.with_weights(w)(x))))(target.weights)


def _check_gradients(target: Target, x: PyTree) -> None:
    """Refuse NaN gradients, where the outputs that count are finite."""
    if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(_gradients(target, x))):
        return
    if np.isfinite(np.asarray(_outputs(target, x, np.arange(sites.batch_size(x))))).all():
        raise UserError(
            "the gradients of the outputs that count are NaN or infinite, although these outputs "
            "are finite: NaN at places that don't count reaches them as 0 · NaN, for example "
            "from a query whose keys are all masked by −∞; mask with a large negative number "
            "(-1e9), or let such a query attend to itself"
        )


def check_positions(target: Target, x: PyTree, settings: Settings) -> None:
    """Raise UserError where k does not fit the positions of a batch, if they are what it counts."""
    if settings.objective.per_position:
        rows = settings.batch_size * math.prod(sites.position_shape(target, x))
        settings.check_sizes(rows)


def check_start(target: Target, init: Components | None, settings: Settings) -> None:
    """Raise UserError unless the initial components fit the target and the settings."""
    if init is None:
        return
    if not isinstance(init, dict):
        raise UserError(f"init must be components or a Decomposition, got {init!r:.200}")
    check_components(target, init)
    for name, factors in init.items():
        for leaf in factors:
            real = jnp.issubdtype(leaf.dtype, jnp.floating)
            if not real or not np.isfinite(np.asarray(leaf)).all():
                raise UserError(
                    f"init must hold finite real numbers; at {name!r} there are "
                    f"{'NaN or infinite ones' if real else leaf.dtype}"
                )
    if num_components(init) != settings.num_components:
        raise UserError(
            f"init has {num_components(init)} components, num_components is "
            f"{settings.num_components}: they must be the same"
        )
    for name, factors in init.items():
        if settings.rank is not None and factors.reads.shape[-2] != settings.rank:
            raise UserError(
                f"init has rank {factors.reads.shape[-2]} at {name!r}, rank is {settings.rank}: "
                "leave rank out"
            )


def _check_finite(params: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        real = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        if real and not np.isfinite(np.asarray(leaf)).all():
            raise UserError(
                f"parameter {sites.leaf_name(path)!r} holds NaN or infinity; retrain the network"
            )


def _check_weights(target: Target) -> None:
    """Refuse weights of half precision, or whose squares float32, as in losses, can't add up."""
    for name, weight in target.weights.items():
        if jnp.finfo(weight.dtype).bits < 32:
            raise UserError(
                f"site {name!r} has weights of {weight.dtype}; give the network its parameters in "
                "float32, jax.tree.map(lambda w: w.astype('float32'), params): it may still "
                "compute in half precision, by casting them inside"
            )
        if not _has_squares(np.asarray(weight)):
            raise UserError(
                f"site {name!r} has weights up to {np.abs(weight).max():.2g}, whose squares are "
                "beyond float32: scale the parameters of the network down, or leave this site out"
            )


def _has_squares(array: np.ndarray) -> bool:
    """Whether the sum of squares is finite as float32."""
    flat = np.asarray(array, np.float32).ravel()
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.dot(flat, flat)))


@jit_with_network
@jax.default_matmul_precision("highest")
def _outputs(target: Target, x: PyTree, rows: jax.Array) -> jax.Array:
    """Outputs of a batch of some rows of `x`."""
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], x)
    return quantities("rms", target(batch)).astype(jnp.float32)


def check_outputs(target: Target, x: PyTree, objective: Objective | None) -> None:
    """Refuse outputs that no loss can compare."""
    outputs = np.asarray(_outputs(target, x, np.arange(sites.batch_size(x))))
    if np.isnan(outputs).any() or np.isposinf(outputs).any():
        raise UserError(
            "the network returns NaN or infinity on the examples it is checked with, for example "
            "from a look-up outside its table; pass inputs that it was made for"
        )
    squares = objective is not None and objective.minimality_loss == "mse"
    if squares and np.isneginf(outputs).any():
        raise UserError(
            "the network returns outputs of −∞, whose squared difference is undefined: use "
            "minimality_loss='kl' for logits, or leave such outputs out"
        )
    if squares and not _has_squares(outputs):
        raise UserError(
            f"the network returns outputs up to {np.abs(outputs).max():.2g}, whose squares are "
            "beyond float32: divide the outputs by a constant, or leave such examples out"
        )


def _check_apart(target: Target, x: PyTree) -> None:
    """Refuse a network in which an example's output depends on its batch, or its place there."""
    size = sites.batch_size(x)
    if size < 3:
        return
    # Beside others, in another place; as many as all, so that nothing is compiled again.
    first = np.asarray(_outputs(target, x, np.array([0, *[1] * (size - 1)])))[0]
    other = np.asarray(_outputs(target, x, np.array([2, 0, *[2] * (size - 2)])))[1]
    if not close(first, other, DIFFERENCE):
        raise UserError(_MIXED)
