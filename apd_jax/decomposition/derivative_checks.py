"""Whether the derivatives through a network's sites are those of the network itself.

Letters: B batch, O outputs.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from apd_jax import randomness, sites
from apd_jax.attribution.metrics import quantities
from apd_jax.components import Components, init_components
from apd_jax.decomposition.rounding import derivative_tolerance
from apd_jax.errors import UserError
from apd_jax.masked import forward
from apd_jax.programs.axes import spread
from apd_jax.programs.compiled import jit_with_network, kept_with
from apd_jax.sites import PyTree, Target
from apd_jax.sites.closeness import close
from apd_jax.sites.program import ambient


def _through_sites(target: Target, x: PyTree, component: Components, amounts: jax.Array):
    """Outputs [B, O] with an amount [B] of one component added at every use of a site.

    Each example has an amount of its own, so that examples which change places in the batch, and
    would get each other's components, are seen too.
    """

    def tapped(inputs, amounts):
        def operation(call):
            factors = component[call.key[0]].placed(call.placement)
            added = forward.write_sum(forward.read_all(call.x, factors), factors)
            y = call.as_is()
            return y + (added * spread(amounts, y.ndim)).astype(y.dtype)

        return quantities("rms", sites.run(target, inputs, operation)[0])

    return sites.over_examples(tapped, target, x, amounts)


def _moved(target: Target, x: PyTree, component: Components, amount: jax.Array) -> jax.Array:
    """Outputs [B, O] of the network itself with an amount of one component in its parameters."""
    matrices = {name: factors.matrices()[0] for name, factors in component.items()}
    weights = {name: w + amount * matrices[name] for name, w in target.weights.items()}
    return quantities("rms", target.with_weights(weights)(x))


def _along(target: Target, x: PyTree, component: Components) -> core.ClosedJaxpr:
    """The program of the derivative [B, O] through the sites along one component.

    Of the leaves of (target, x, component) and of amounts [B], in which it is linear. It is traced
    once, as the network runs through its sites slowly while it is traced.
    """
    leaves, tree = jax.tree.flatten((target, x, component))
    shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    with jax.default_matmul_precision("highest"):
        return kept_with(target.apply_fn, _trace_along, tree, shapes, ambient())


def _trace_along(_, tree: Any, shapes: tuple, _ambient: tuple) -> core.ClosedJaxpr:
    def pushed(target, x, component, amounts):
        through = functools.partial(_through_sites, target, x, component)
        return jax.linearize(through, jnp.zeros_like(amounts))[1](amounts)

    structs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    arguments = jax.tree.unflatten(tree, structs)
    amounts = jax.ShapeDtypeStruct((sites.batch_size(arguments[1]),), jnp.float32)
    return jax.make_jaxpr(pushed)(*arguments, amounts)


@jit_with_network
@jax.default_matmul_precision("highest")
def _two_derivatives(target, x, component) -> tuple[jax.Array, jax.Array]:
    """Along one component, [B, O]: by the network itself, and through its sites."""
    amounts = 1 + jnp.arange(sites.batch_size(x), dtype=jnp.float32)
    network = functools.partial(_moved, target, x, component)
    own = jax.jvp(network, (jnp.float32(0),), (jnp.float32(1),))[1].astype(jnp.float32)
    through = core.jaxpr_as_fun(_along(target, x, component))
    (ours,) = through(*jax.tree.leaves((target, x, component)), amounts)
    return own * amounts[:, None], ours.astype(jnp.float32)


@jit_with_network
@jax.default_matmul_precision("highest")
def _two_gradients(target, x, component) -> tuple[jax.Array, jax.Array]:
    """The same pulled back, [B, B]: of a random combination of each example's outputs.

    For networks that have no derivative along a direction. Through the sites, the gradient of an
    example with respect to the amounts of others, off the diagonal, is to be 0.
    """
    size = sites.batch_size(x)
    network, pull = jax.vjp(functools.partial(_moved, target, x, component), jnp.float32(0))
    through = functools.partial(_through_sites, target, x, component)
    _, pull_sites = jax.vjp(through, jnp.zeros(size))
    weights = jax.random.normal(randomness.root(0), network.shape)
    each = (jnp.eye(size)[..., None] * weights).astype(network.dtype)
    (own,), (ours,) = jax.vmap(pull)(each), jax.vmap(pull_sites)(each)
    return jnp.diag(own), ours


def one_component(target: Target) -> Components:
    """A component of random factors."""
    drawn = np.random.default_rng(0)  # drawing inside would take longer to compile than all else
    one = functools.partial(init_components, randomness.root(0), num_components=1, rank=1)
    return jax.tree.map(
        lambda leaf: drawn.normal(size=leaf.shape).astype(leaf.dtype), jax.eval_shape(one, target)
    )


def check_any_derivative(target: Target, x: PyTree) -> None:
    """Trace the derivatives through the sites, along and back, before anything else needs them.

    Raises:
      UserError: all derivatives are zero, or an operation has none.
    """
    component = one_component(target)
    try:
        program = _along(target, x, component)
        # Whether it depends on what is added at the sites at all.
        changes = partial_eval.dce_jaxpr(program.jaxpr, [True])[1][-1]
        if changes:
            _trace_gradient(program)
    except UserError:
        raise
    except Exception as error:  # whatever an operation without derivatives says
        reason = (str(error).splitlines() or [""])[0]
        way = "replace the operation, give it derivatives with jax.custom_jvp"
        if "while_loop" in reason:  # of which JAX has no gradient
            way = "write the loop as a scan, or as a fori_loop of fixed bounds"
        raise UserError(
            f"the network can't be differentiated at its sites ({type(error).__name__}: {reason}); "
            f"{way}, or leave out the sites before it"
        ) from error
    if not changes:
        raise UserError(
            "nothing can be attributed: the outputs' derivatives with respect to all sites are "
            "0, for example because a rounding, a step function or an argmax follows them; let "
            "the network return the values before it"
        )


def check_derivatives(target: Target, x: PyTree) -> None:
    """Compare derivatives of the network along one component with those through its sites.

    Args:
      target: the network.
      x: [B, ...] a few inputs.

    Raises:
      UserError: they differ, or are not finite.
    """
    component = one_component(target)
    try:
        own, ours = _two_derivatives(target, x, component)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        own, ours = _two_gradients(target, x, component)  # no derivative along a direction
    if not np.isfinite(np.asarray(own)).all():
        raise UserError(
            "the derivatives of the outputs with respect to the sites are NaN or infinite on the "
            "examples that the network is checked with, although the outputs are finite: for "
            "example of a square root, norm or logarithm at 0, or of a division by 0 beside a "
            "where; add a small number inside (jnp.sqrt(y + 1e-12)), or leave such examples out"
        )
    if not close(own, ours, derivative_tolerance(target, x)):
        raise UserError(
            "the network's derivative with respect to its sites is not that of its own "
            "equations: either examples interact, as through batch statistics in training mode "
            "(use train=False, model.eval()), or they change places in the batch before a "
            "weight, or a custom derivative surrounds a weight; leave that site out"
        )


def _trace_gradient(program: core.ClosedJaxpr) -> None:
    """Trace the gradient back to the sites, which trainings follow, and compute nothing."""
    along = core.jaxpr_as_fun(program)

    def gradient(*arguments):
        *others, amounts = arguments
        pull = jax.linear_transpose(lambda amounts: along(*others, amounts)[0], amounts)
        return pull(jnp.ones(program.out_avals[0].shape, program.out_avals[0].dtype))

    structs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in program.in_avals]
    jax.eval_shape(gradient, *structs)
