"""Where the arrays that a training is given must be."""

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.sites import PyTree


def on_one_device(tree: PyTree) -> PyTree:
    """Put arrays that are on other devices, or on a mesh, where the states of a training are."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def moved(leaf):
        if not isinstance(leaf, jax.Array) or leaf.sharding == here:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(leaf, here)
        # Through the host: of an array on a mesh with explicit axes `device_put` keeps the mesh.
        return jax.device_put(np.asarray(leaf), here)

    leaves, structure = jax.tree.flatten(tree)
    found = [moved(leaf) for leaf in leaves]
    same = all(new is old for new, old in zip(found, leaves, strict=True))
    return tree if same else jax.tree.unflatten(structure, found)
