"""Linear maps `y = x W` of sparse or Gaussian inputs.

Letters: B batch, d width, R rank of W.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from apd_jax.config_fields import check_at_least, check_values, setting
from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.errors import UserError
from apd_jax.programs import linalg
from apd_jax.sites import Target
from apd_jax.studies.task import Task

Params = dict[str, jax.Array]
SampleKind = Literal["sparse", "gaussian"]


@dataclasses.dataclass(frozen=True)
class GaussianInputs:
    """Dense inputs [B, d] with independent standard normal entries.

    Attributes:
      width: number of inputs d.
    """

    width: int

    def __call__(self, key: jax.Array, batch_size: int) -> jax.Array:
        """Draw a batch, [B, d] float32."""
        return jax.random.normal(key, (batch_size, self.width))


def multiply(params: Params, x: jax.Array) -> jax.Array:
    """The output of the network, `x W`, [B, d]."""
    return x @ params["w"]


@dataclasses.dataclass(frozen=True)
class LinearMap(Task):
    """A matrix that is not trained, and the distribution of its inputs.

    With sparse inputs the mechanisms are the rows of W, one for each input. With Gaussian inputs
    no direction is preferred.
    """

    width: int = setting(10, "d, number of inputs and of outputs.")
    kind: Literal["identity", "orthogonal", "low-rank"] = setting(
        "identity",
        "W is the identity, a random orthogonal matrix, or a random matrix of low rank.",
    )
    map_rank: int = setting(3, "R, rank of the low-rank W.")
    sample: SampleKind = setting("sparse", "x is sparse in [0, 1], or dense and Gaussian.")
    probability: float = setting(0.05, "Probability that a sparse input is active.")

    def __post_init__(self):
        check_values(self)
        check_at_least(self, 1, "width", "map_rank")
        if self.kind == "low-rank" and self.map_rank >= self.width:
            raise UserError(f"map_rank must be below the width, {self.width}, got {self.map_rank}")
        if not 0 < self.probability <= 1:
            raise UserError(f"probability must be in (0, 1], got {self.probability}")

    @property
    def inputs(self) -> SparseFeatures | GaussianInputs:
        """The distribution of x."""
        if self.sample == "sparse":
            return SparseFeatures(self.width, self.probability)
        return GaussianInputs(self.width)

    def init(self, key: jax.Array) -> Params:
        """W with rows of norm 1: `{"w": [d, d]}` float32."""
        d = self.width
        if self.kind == "identity":
            return {"w": jnp.eye(d)}
        drawn = jax.random.normal(key, (d, d))
        if self.kind == "orthogonal":
            return {"w": linalg.qr(drawn)[0]}
        basis = linalg.qr(drawn)[0][: self.map_rank]
        rows = jax.random.normal(jax.random.fold_in(key, 1), (d, self.map_rank))
        return {"w": rows / jnp.linalg.norm(rows, axis=1, keepdims=True) @ basis}

    def target(self, params: Params) -> Target:
        """The map with its only site, `w`."""
        inputs = jax.ShapeDtypeStruct((2, self.width), jnp.float32)
        return Target(multiply, params, inputs=inputs)
