"""Sparse feature inputs of the toy models.

Letters: B batch, F features.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32

from apd_jax.config_fields import check_at_least, check_values, setting
from apd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SparseFeatures:
    """A distribution of sparse inputs `x` [B, F]; an active feature has a value from a range."""

    num_features: int = setting(dataclasses.MISSING, "F, the number of input features.")
    probability: float = setting(
        dataclasses.MISSING, "Chance that a feature (or synced group) is active, if independent."
    )
    value_range: tuple[float, float] = setting(
        (0.0, 1.0), "The interval that active values are uniform in.", flag=False
    )
    input_mode: Literal["independent", "exactly_n"] = setting(
        "independent", "Independent features, or exactly n of them active on every example."
    )
    num_active: int = setting(1, "How many, if exactly n.")
    synced: tuple[tuple[int, ...], ...] = setting(
        (), "Groups of features that are active together, each feature with its own value."
    )

    def __post_init__(self):
        check_values(self)
        check_at_least(self, 1, "num_features")
        if not 0 < self.probability <= 1:
            raise UserError(f"probability must be in (0, 1], got {self.probability}")
        if self.input_mode == "exactly_n" and not 1 <= self.num_active <= self.num_features:
            raise UserError(
                f"num_active must be in [1, {self.num_features}], got {self.num_active}"
            )
        if not self.value_range[0] < self.value_range[1]:
            raise UserError(f"value_range must be (low, high), low < high; got {self.value_range}")
        self._check_synced()

    def _check_synced(self):
        if not all(isinstance(group, tuple) for group in self.synced):
            raise UserError(
                f"synced must be groups of features, such as ((0, 1), (2, 3)); got {self.synced}"
            )
        if not all(self.synced):
            raise UserError(f"synced groups must not be empty, got {self.synced}")
        members = [feature for group in self.synced for feature in group]
        if not all(isinstance(feature, int) for feature in members):
            raise UserError(f"synced groups hold the indices of features, got {self.synced}")
        outside = [feature for feature in members if not 0 <= feature < self.num_features]
        if outside:
            raise UserError(
                f"synced features {outside} are out of range; there are {self.num_features}"
            )
        twice = sorted({feature for feature in members if members.count(feature) > 1})
        if twice:
            raise UserError(f"synced groups overlap in features {twice}; a feature has one group")
        if members and self.input_mode != "independent":
            raise UserError(f"synced groups need input_mode 'independent', got {self.input_mode!r}")

    def __call__(self, key: jax.Array, batch_size: int) -> jax.Array:
        """Draw a batch.

        If independent, every entry takes one 32-bit random word, which decides both whether it is
        active (the word is below `probability · 2³²`) and, given that it is, its value (the word's
        place below that bound, uniform to 2⁻³¹/probability of the range).

        Args:
          key: random key.
          batch_size: B.

        Returns:
          [B, F] float32, exactly 0 where a feature is inactive.
        """
        shape = batch_size, self.num_features
        if self.input_mode == "exactly_n":
            return self._exactly_n(key, shape)
        bound = min(round(self.probability * 2**32), 2**32 - 1)
        if bound == 0:
            return jnp.zeros(shape)
        low, high = self.value_range
        words = _random_words(key, shape)
        # At probability 1 the bound is the largest word, which is active as well.
        active = words <= jnp.uint32(bound) if self.probability == 1 else words < jnp.uint32(bound)
        # Signed integers convert to floats in vector registers, unsigned ones do not.
        halves = jax.lax.bitcast_convert_type(words >> 1, jnp.int32).astype(jnp.float32)
        x = jnp.where(active, low + (high - low) * (halves * (2.0 / bound)), 0.0)
        return self._synchronise(jax.random.fold_in(key, 1), x, active) if self.synced else x

    def _exactly_n(self, key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        value_key, order_key = jax.random.split(key)
        low, high = self.value_range
        values = jax.random.uniform(value_key, shape, minval=low, maxval=high)
        _, chosen = jax.lax.top_k(jax.random.uniform(order_key, shape), self.num_active)
        rows = jnp.arange(shape[0])[:, None]
        return jnp.where(jnp.zeros(shape, bool).at[rows, chosen].set(True), values, 0.0)

    def _synchronise(self, key: jax.Array, x: jax.Array, active: jax.Array) -> jax.Array:
        """Let the first feature of every group decide for the group; values stay independent."""
        low, high = self.value_range
        fresh = jax.random.uniform(key, x.shape, minval=low, maxval=high)
        for group in self.synced:
            members = jnp.array(group)
            leader = active[:, group[0]][:, None]
            x = x.at[:, members].set(jnp.where(leader, fresh[:, members], 0.0))
        return x


def _random_words(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform uint32, as `jax.random.bits`, at half the cost where keys are JAX's usual ones.

    A block of Threefry gives two words; `jax.random.bits` keeps one of them.
    """
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.bits(key, shape, jnp.uint32)
    counts = jnp.arange(math.prod(shape), dtype=jnp.uint32)
    return threefry_2x32(jax.random.key_data(key), counts).reshape(shape)
