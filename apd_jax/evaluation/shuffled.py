"""A control: the network with each matrix's entries shuffled, in which there is nothing to find."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import randomness
from apd_jax.config_fields.values import root_seed
from apd_jax.errors import UserError
from apd_jax.programs.jax_settings import check_key
from apd_jax.sites.parameters import checked


def shuffled(params: Any, key: jax.Array | int) -> Any:
    """Shuffle the entries of every array of at least two axes.

    Each matrix keeps its values and loses what it computes: a method that finds as much in the
    shuffled network finds nothing in the other one. Arrays of one axis, biases and scales, stay as
    they are. Layers that are kept in one array, as for a scan, are shuffled as one, and so are
    their biases.

    Args:
      params: a pytree of parameters.
      key: PRNG key, or a whole number for one.

    Returns:
      A pytree like `params`.

    Raises:
      UserError: no array of at least two axes, a leaf that is no array of numbers, no key.
    """
    if not jnp.issubdtype(getattr(key, "dtype", np.dtype(int)), jax.dtypes.prng_key):
        legacy = getattr(key, "shape", ())  # of words, as jax.random.PRNGKey makes them
        key = key if legacy else randomness.root(root_seed(key))
    check_key(key)
    leaves, tree = jax.tree.flatten(checked(params))
    if not any(np.ndim(leaf) >= 2 for leaf in leaves):
        raise UserError("there is no matrix to shuffle among the parameters")
    moved = [
        jax.random.permutation(jax.random.fold_in(key, place), leaf.reshape(-1)).reshape(leaf.shape)
        if np.ndim(leaf) >= 2
        else leaf
        for place, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, moved)
