"""Moving the arrays that a training is given to its device."""

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.sites import PyTree


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
