"""What is checked of a network before any training: that what follows will be right.

Letters: B batch.
"""

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import forward, randomness, sites
from apd_jax.attribution.metrics import quantities
from apd_jax.components import in_parameter_space, init_components
from apd_jax.errors import UserError
from apd_jax.objective import Objective
from apd_jax.sites import PyTree, Target

_TOLERANCE = 1e-3


def check_target(target: Target, x: PyTree, objective: Objective) -> None:
    """Run the network once as the decomposition will, so that mistakes show before training.

    Args:
      target: the network.
      x: [B, ...] a few different inputs; with fewer than 3 it is not seen whether examples mix.
      objective: how it is to be decomposed.

    Raises:
      UserError: inputs that the network does not take, outputs that are no real numbers,
        parameters that are not finite, examples that mix, derivatives that the network defines
        otherwise than its own equations, unknown hidden sites.
    """
    _check_finite(target.params)
    target.at(x)
    jax.eval_shape(lambda inputs: quantities(objective.metric, target(inputs)), x)
    for name in objective.hidden_sites:
        target.sites.full_name(name)
    if objective.per_position:
        sites.num_positions(target, x)
    _check_attributions(target, x, objective)
    _check_apart(target, x)
    _check_derivatives(target, x)


def _check_attributions(target: Target, x: PyTree, objective: Objective) -> None:
    """Trace the attributions, so that what they refuse is refused now."""
    component = init_components(jax.random.key(0), target, num_components=1, rank=1)
    jax.eval_shape(
        lambda inputs, key: objective.attribute(target, component, inputs, key).scores,
        x,
        jax.random.key(0),
    )


def _check_finite(params: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        real = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        if real and not bool(jnp.all(jnp.isfinite(leaf))):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(f"parameter {name!r} holds NaN or infinity; train the network anew")


@jax.jit
@jax.default_matmul_precision("highest")
def _outputs(target: Target, x: PyTree) -> jax.Array:
    return quantities("rms", target(x)).astype(jnp.float32)


def _check_apart(target: Target, x: PyTree) -> None:
    """Refuse a network in which an example's output depends on the others of its batch."""
    if sites.batch_size(x) < 3:
        return
    first = _outputs(target, jax.tree.map(lambda leaf: leaf[:2], x))[0]
    other = _outputs(target, jax.tree.map(lambda leaf: leaf[jnp.array([0, 2])], x))[0]
    if not _close(first, other):
        raise UserError(
            "the output of an example depends on the other examples of its batch, as with batch "
            "statistics in training; run the network as it is used (train=False), or fix what is "
            "shared"
        )


@jax.jit
@jax.default_matmul_precision("highest")
def _two_derivatives(target: Target, x: PyTree) -> tuple[jax.Array, jax.Array]:
    """Along one random component: by the network itself, and through its sites."""
    component = init_components(randomness.root(0), target, num_components=1, rank=1)
    vector = jax.tree.map(lambda leaf: leaf[0], in_parameter_space(target, component))

    def network(params):
        return quantities("rms", target.apply_fn(params, x))

    def tapped(scale, inputs):
        def operation(call):
            factors = component[call.key[0]].placed(call.placement)
            added = forward.write_sum(forward.read_all(call.x, factors), factors)
            y = call.as_is()
            return y + (scale * added).astype(y.dtype)

        return quantities("rms", sites.run(target, inputs, operation)[0])

    def through_sites(scale):
        return sites.over_examples(lambda inputs: tapped(scale, inputs), target, x)

    own = jax.jvp(network, (target.params,), (vector,))[1]
    ours = jax.jvp(through_sites, (jnp.float32(0),), (jnp.float32(1),))[1]
    return own.astype(jnp.float32), ours.astype(jnp.float32)


def _check_derivatives(target: Target, x: PyTree) -> None:
    try:
        own, ours = _two_derivatives(target, x)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        return  # such a network has no derivative along a direction to compare with
    if not _close(own, ours):
        raise UserError(
            "the network's derivative with respect to its sites is not that of its own equations, "
            "as where a custom derivative or stop_gradient stands around a weight; leave that "
            "site out"
        )


def _close(a: jax.Array, b: jax.Array) -> bool:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    same = (a == b) | (~np.isfinite(a) & ~np.isfinite(b))  # logits of −∞ are ordinary
    scale = max(np.abs(a[~same]).max(initial=0.0), np.abs(b[~same]).max(initial=0.0))
    return bool((np.abs(a[~same] - b[~same]) <= _TOLERANCE * scale).all())
