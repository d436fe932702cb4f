"""The result of a selection: which components are active on which rows.

Letters: B batch, T positions, C components, K active pairs.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Selected(NamedTuple):
    """The active (example, component) pairs of a batch.

    Attributes:
      mask: [B, C] bool, or [B, T, C] where components are chosen for every position.
      pairs: (rows, components), int32 [K] each, in any order, positions counted through the
        examples; None where their number depends on the data. C fills places without finite scores.
      nonfinite: int32 scalar, how many scores of what counts are NaN or infinite; None if unknown.
      weights: the mask as float32, through which gradients flow to the scores (`gates.choose`);
        None if no gradient flows.
    """

    mask: jax.Array
    pairs: tuple[jax.Array, jax.Array] | None
    nonfinite: Any = None
    weights: Any = None

    @property
    def mask_weights(self) -> jax.Array:
        """What components are multiplied by: the weights, or the mask if there are none."""
        return self.mask if self.weights is None else self.weights

    def counts(self) -> jax.Array:
        """On how many rows (examples, or positions of them) each component is active, int32 [C]."""
        if self.pairs is None:
            rows = self.mask.reshape(-1, self.mask.shape[-1])
            return jnp.sum(rows, axis=0, dtype=jnp.int32)
        # Counting K pairs costs far less than summing B·C entries of the mask. The scatter drops
        # the component number C, which is out of bounds.
        components = self.pairs[1]
        return jnp.zeros((self.mask.shape[-1],), jnp.int32).at[components].add(1)


def only(selected: Selected, rows: jax.Array) -> Selected:
    """Leave out the rows that don't count, bool [B]."""
    mask = selected.mask & rows[:, None]
    if selected.pairs is None:
        weights = None if selected.weights is None else selected.weights * rows[:, None]
        return Selected(mask, None, weights=weights)
    places, components = selected.pairs
    return Selected(mask, (places, jnp.where(rows[places], components, mask.shape[-1])))


def add_always_active(selected: Selected) -> Selected:
    """Add one component that is active on every example and not counted by k (distillation).

    Args:
      selected: the selection among the other components, mask [B, C - 1].

    Returns:
      The selection with mask [B, C], its last column true.
    """
    batch_size, last = selected.mask.shape
    mask = jnp.concatenate([selected.mask, jnp.ones((batch_size, 1), bool)], axis=1)
    if selected.pairs is None:
        return Selected(mask, None)
    examples, components = selected.pairs
    # The number that stands for no component moves on with the number of components.
    components = jnp.where(components == last, last + 1, components)
    every = jnp.arange(batch_size, dtype=examples.dtype)
    pairs = jnp.concatenate([examples, every]), jnp.concatenate([components, 0 * every + last])
    return Selected(mask, pairs)
