"""What the tests hold results against: components as dense vectors over the parameters, plain JAX.

Letters: B examples, T positions, C components.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np

from zoo.network import Network, PyTree


def names(params: PyTree) -> PyTree:
    """The name of every leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
    )


def replaced(network: Network, values: PyTree) -> PyTree:
    """The parameters with `values` in the place of everything that is a site."""

    def leaf(name, old, new):
        if name in network.sites:
            return new
        for site in network.sites:
            if match := re.fullmatch(re.escape(name) + r"\[(\d+)\]", site):
                old = old.at[int(match[1])].set(new[int(match[1])])
        return old

    return jax.tree.map(leaf, names(network.params), network.params, values)


def _side_by_side(outputs: PyTree, batch_axis: int) -> jax.Array:
    """All outputs of an example on one axis, the last."""
    leaves = [jnp.asarray(leaf, jnp.float32) for leaf in jax.tree.leaves(outputs)]
    flat = [leaf.reshape(*leaf.shape[: batch_axis + 1], -1) for leaf in leaves]
    return jnp.concatenate(flat, axis=-1)


def rms(outputs: PyTree, batch_axis: int) -> jax.Array:
    """Root of the mean square over all outputs of an example, the axes behind `batch_axis`."""
    return jnp.sqrt(jnp.mean(_side_by_side(outputs, batch_axis) ** 2, axis=-1))


def _tangent(value: jax.Array, direction: jax.Array) -> jax.Array:
    """The direction, which of whole numbers JAX wants as an array of nothing."""
    real = jnp.issubdtype(value.dtype, jnp.floating)
    return direction if real else np.zeros(value.shape, jax.dtypes.float0)


def derivatives(network: Network, vectors: PyTree) -> jax.Array:
    """The derivative of `apply_fn` along every vector [C, ...]: [C, B, outputs]."""

    def along(vector):
        at = lambda params: network.apply_fn(params, network.inputs)  # noqa: E731
        tangent = jax.tree.map(_tangent, network.params, vector)
        return jax.jvp(at, (network.params,), (tangent,))[1]

    with jax.default_matmul_precision("highest"):
        return _side_by_side(jax.jit(jax.vmap(along))(vectors), batch_axis=1)


def attributions(network: Network, vectors: PyTree) -> jax.Array:
    """RMS over the outputs of the derivative along every vector [C, ...]: [B, C]."""
    return jnp.sqrt(jnp.mean(derivatives(network, vectors) ** 2, axis=-1)).T


def one_example(network: Network):
    """A function (params, b) -> outputs of example b alone, compiled once."""
    apply = jax.jit(network.apply_fn)

    def run(params, b):
        example = jax.tree.map(lambda leaf: leaf[b : b + 1], network.inputs)
        return apply(params, example)

    return run


def masked(network: Network, vectors: PyTree, mask: jax.Array, run) -> PyTree:
    """`apply_fn` with the sum of each example's own components, one example after another."""
    rows = []
    for b, row in enumerate(np.asarray(mask)):
        own = np.flatnonzero(row)
        chosen = jax.tree.map(lambda leaf, own=own: leaf[own].sum(axis=0), vectors)
        rows.append(run(replaced(network, chosen), b))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)


def _everywhere(network: Network, shape: tuple[int, int]) -> PyTree:
    """The parameters, sites repeated to [B, T, ...]."""

    def leaf(name, value):
        return jnp.broadcast_to(value, (*shape, *value.shape)) if name in network.sites else value

    return jax.tree.map(leaf, names(network.params), network.params)


def masked_by_position(network: Network, vectors: PyTree, mask: jax.Array) -> PyTree:
    """The network with a sum of components [B, T, C] of its own at every position."""
    mask = jnp.asarray(mask, jnp.float32)
    chosen = jax.tree.map(lambda leaf: jnp.tensordot(mask, leaf, 1), vectors)
    return network.by_position(replaced(network, chosen), network.inputs)


def attributions_by_position(network: Network, vectors: PyTree) -> jax.Array:
    """RMS over all outputs of the derivative along P_c at position t alone: [B, T, C]."""
    shape = network.inputs.shape[:2]
    params = _everywhere(network, shape)

    def at(vector, t):
        place = jnp.arange(shape[1]) == t

        def leaf(name, value, direction):
            if name not in network.sites:
                return jnp.zeros_like(value)
            return direction * place.reshape(1, -1, *(1,) * direction.ndim) + 0 * value

        tangent = jax.tree.map(leaf, names(network.params), params, vector)
        run = lambda params: network.by_position(params, network.inputs)  # noqa: E731
        return jax.jvp(run, (params,), (tangent,))[1]

    places = jnp.arange(shape[1])
    along = jax.vmap(lambda t: jax.vmap(lambda vector: at(vector, t))(vectors))
    return jnp.moveaxis(rms(jax.jit(along)(places), batch_axis=2), 2, 0)
