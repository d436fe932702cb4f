"""Arrays that users give, brought to where they are computed with.

Letters: B batch.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import sites
from apd_jax.sites import PyTree, Target
from apd_jax.sites.given_arrays import as_arrays


def on_one_device(tree: PyTree) -> PyTree:
    """Move arrays that lie on other devices, or on a mesh, to this process's first device."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def moved(leaf):
        if not isinstance(leaf, jax.Array) or leaf.sharding == here:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(leaf, here)
        # Through the host: `device_put` keeps the mesh of an array on a mesh with explicit axes.
        return jax.device_put(np.asarray(leaf), here)

    leaves, structure = jax.tree.flatten(tree)
    found = [moved(leaf) for leaf in leaves]
    same = all(new is old for new, old in zip(found, leaves, strict=True))
    return tree if same else jax.tree.unflatten(structure, found)


def given_inputs(target: Target, x: PyTree) -> PyTree:
    """Inputs [B, ...] as JAX's or NumPy's arrays, which the network takes where it lies.

    Raises:
      UserError: inputs that are no arrays, are empty, or that the network does not take; a single
        example without the batch axis.
    """
    x = as_arrays(x)
    sites.check_inputs(target, x)
    return _beside(target.params, x)


def _beside(params: PyTree, x: PyTree) -> PyTree:
    """The inputs, as NumPy's where they lie elsewhere than the parameters: JAX then moves them.

    Of NumPy's parameters JAX makes arrays on this process's first device.
    """
    places = [leaf.sharding for leaf in jax.tree.leaves(params) if _is_placed(leaf)]
    here = places[0] if places else jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def free(leaf):
        if not _is_placed(leaf) or leaf.sharding == here:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = np.asarray(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return np.asarray(leaf)

    return jax.tree.map(free, x)


def _is_placed(leaf: Any) -> bool:
    """Whether this is an array on devices, and not one that is traced."""
    return isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
