"""Sparse feature inputs of the toy models.

Letters: B batch, F features.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32

from apd_jax.errors import UserError

Mode = Literal["independent", "exactly_n"]


@dataclasses.dataclass(frozen=True)
class SparseFeatures:
    """A distribution of sparse inputs `x` [B, F]; an active feature has a value from a range.

    Attributes:
      num_features: F.
      probability: chance that a feature (or a synced group) is active, in `independent` mode.
      value_range: the interval that active values are uniform in.
      mode: `"independent"` features, or `"exactly_n"` of them active on every example.
      num_active: how many, in `exactly_n` mode.
      synced: groups of features that are active together, each feature with its own value.
    """

    num_features: int
    probability: float
    value_range: tuple[float, float] = (0.0, 1.0)
    mode: Mode = "independent"
    num_active: int = 1
    synced: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self):
        if self.num_features < 1:
            raise UserError(f"num_features must be at least 1, got {self.num_features}")
        if not 0 < self.probability <= 1:
            raise UserError(f"probability must be in (0, 1], got {self.probability}")
        if self.mode not in ("independent", "exactly_n"):
            raise UserError(f"mode must be 'independent' or 'exactly_n', got {self.mode!r}")
        if self.mode == "exactly_n" and not 1 <= self.num_active <= self.num_features:
            raise UserError(
                f"num_active must be in [1, {self.num_features}], got {self.num_active}"
            )
        if not self.value_range[0] < self.value_range[1]:
            raise UserError(f"value_range must be (low, high), low < high; got {self.value_range}")
        self._check_synced()

    def _check_synced(self):
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
        if members and self.mode != "independent":
            raise UserError("synced groups need mode 'independent'")

    def __call__(self, key: jax.Array, batch_size: int) -> jax.Array:
        """Draw a batch.

        Args:
          key: random key.
          batch_size: B.

        Returns:
          [B, F] float32, exactly 0 where a feature is inactive.
        """
        return sparse_features(
            key,
            batch_size,
            num_features=self.num_features,
            probability=self.probability,
            value_range=self.value_range,
            mode=self.mode,
            num_active=self.num_active,
            synced=self.synced,
        )


def sparse_features(
    key: jax.Array,
    batch_size: int,
    *,
    num_features: int,
    probability: float = 1.0,
    value_range: tuple[float, float] = (0.0, 1.0),
    mode: Mode = "independent",
    num_active: int = 1,
    synced: tuple[tuple[int, ...], ...] = (),
) -> jax.Array:
    """Draw sparse inputs; the arguments are those of `SparseFeatures`.

    Every entry takes one 32-bit random word, which decides both whether it is active (the word is
    below `probability · 2³²`) and, given that it is, its value (the word's place below that
    bound, uniform to 2⁻³¹/probability of the range).

    Returns:
      [B, F] float32.
    """
    low, high = value_range
    shape = (batch_size, num_features)
    if mode == "exactly_n":
        value_key, order_key = jax.random.split(key)
        values = jax.random.uniform(value_key, shape, minval=low, maxval=high)
        _, chosen = jax.lax.top_k(jax.random.uniform(order_key, shape), num_active)
        rows = jnp.arange(batch_size)[:, None]
        return jnp.where(jnp.zeros(shape, bool).at[rows, chosen].set(True), values, 0.0)
    bound = min(round(probability * 2**32), 2**32 - 1)
    if bound == 0:
        return jnp.zeros(shape)
    words = _random_words(key, shape)
    active = words <= jnp.uint32(bound) if probability == 1 else words < jnp.uint32(bound)
    # Signed integers convert to floats in vector registers, unsigned ones do not.
    halves = jax.lax.bitcast_convert_type(words >> 1, jnp.int32).astype(jnp.float32)
    values = low + (high - low) * (halves * (2.0 / bound))
    x = jnp.where(active, values, 0.0)
    if not synced:
        return x
    return _synchronise(jax.random.fold_in(key, 1), x, active, value_range, synced)


def _random_words(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform uint32, as `jax.random.bits`, at half the cost where keys are JAX's usual ones.

    A block of Threefry gives two words; `jax.random.bits` keeps one of them.
    """
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.bits(key, shape, jnp.uint32)
    counts = jnp.arange(math.prod(shape), dtype=jnp.uint32)
    return threefry_2x32(jax.random.key_data(key), counts).reshape(shape)


def _synchronise(key, x, active, value_range, synced):
    """Let the first feature of every group decide for the group; values stay independent."""
    fresh = jax.random.uniform(key, x.shape, minval=value_range[0], maxval=value_range[1])
    for group in synced:
        members = jnp.array(group)
        leader = active[:, group[0]][:, None]
        x = x.at[:, members].set(jnp.where(leader, fresh[:, members], 0.0))
    return x
