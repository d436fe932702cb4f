"""The toy model of superposition `ReLU(x W Wᵀ + b)`: more features than hidden dimensions.

Letters: B batch, F features, h hidden width.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from apd_jax.config_fields import check_at_least, check_values, setting
from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.errors import UserError
from apd_jax.sites import Target
from apd_jax.studies.task import TargetTraining, Task

LINEAR = "linear1/kernel"


def hidden_names(count: int) -> tuple[str, ...]:
    """The names of the hidden layers' sites, first to last."""
    return tuple(f"hidden_{i}/kernel" for i in range(count))


class TiedLinear(nn.Module):
    """A matrix [d_in, d_out] used forwards (`x W`) and backwards (`h Wᵀ`)."""

    d_in: int
    d_out: int

    def setup(self):
        """Create the matrix."""
        shape = (self.d_in, self.d_out)
        self.kernel = self.param("kernel", nn.initializers.xavier_normal(), shape)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`x W`."""
        return x @ self.kernel

    def decode(self, h: jax.Array) -> jax.Array:
        """`h Wᵀ`."""
        return h @ self.kernel.T


class TMS(nn.Module):
    """`ReLU(x W H_1 ... H_L Wᵀ + b)` with L >= 0 hidden layers H_i (section 3.1 of the paper).

    Sites: `linear1/kernel` (used twice, the second time transposed), `hidden_0/kernel`, ...

    Attributes:
      num_features: F.
      num_hidden: h.
      hidden_layers: L.
    """

    num_features: int
    num_hidden: int
    hidden_layers: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The outputs [B, F] for inputs [B, F]."""
        tied = TiedLinear(self.num_features, self.num_hidden, name="linear1")
        hidden = tied(x)
        for layer in range(self.hidden_layers):
            hidden = nn.Dense(self.num_hidden, use_bias=False, name=f"hidden_{layer}")(hidden)
        bias = self.param("b_final", nn.initializers.zeros, (self.num_features,))
        return nn.relu(tied.decode(hidden) + bias)


@dataclasses.dataclass(frozen=True)
class TMSTask(Task):
    """A TMS, its inputs and labels, and the choice of trained parameters."""

    inputs: SparseFeatures = setting(
        SparseFeatures(5, 0.05), "Distribution of x; the labels are x itself.", flat=True
    )
    num_hidden: int = setting(2, "h, width of the hidden layer.")
    hidden_layers: int = setting(0, "L, number of layers between encoder and decoder.")
    hidden_kind: Literal["identity", "random", "trained"] = setting(
        "identity",
        "Hidden layers are the fixed identity, fixed random matrices, or trained matrices.",
    )
    training: TargetTraining = setting(
        TargetTraining(5000, 1024, 5e-3, "linear"), "Training of the target.", flat=True
    )

    def __post_init__(self):
        check_values(self)
        check_at_least(self, 1, "num_hidden")
        check_at_least(self, 0, "hidden_layers")
        if self.hidden_layers > 1000:
            raise UserError(f"hidden_layers must be at most 1000, got {self.hidden_layers}")

    @property
    def module(self) -> TMS:
        """The network."""
        return TMS(self.inputs.num_features, self.num_hidden, self.hidden_layers)

    @property
    def sites(self) -> tuple[str, ...]:
        """`linear1`, then the hidden layers."""
        return (LINEAR, *hidden_names(self.hidden_layers))

    @property
    def hidden_sites(self) -> tuple[str, ...]:
        """Sites whose outputs the hidden-activation loss compares: all sites."""
        return self.sites

    def init(self, key: jax.Array):
        """Draw the initial parameters; fixed hidden layers already have their final values."""
        params = self.module.init(key, jnp.zeros((1, self.inputs.num_features)))["params"]
        width = self.num_hidden
        for layer in range(self.hidden_layers):
            if self.hidden_kind == "identity":
                params[f"hidden_{layer}"]["kernel"] = jnp.eye(width)
            elif self.hidden_kind == "random":
                layer_key = jax.random.fold_in(key, layer)
                params[f"hidden_{layer}"]["kernel"] = jax.random.normal(layer_key, (width, width))
        return params

    def is_trained(self, name: str) -> bool:
        """Whether the parameters below a top-level name are trained."""
        return not name.startswith("hidden_") or self.hidden_kind == "trained"

    def labels(self, x: jax.Array) -> jax.Array:
        """The outputs that the network is trained for: its inputs."""
        return x

    def loss(self, params, x: jax.Array) -> jax.Array:
        """The mean over batch and features of `(f(x) − x)²`."""
        outputs: Any = self.module.apply({"params": params}, x)
        return jnp.mean(jnp.square(outputs - x))

    def target(self, params) -> Target:
        """The network with its sites."""
        inputs = jax.ShapeDtypeStruct((2, self.module.num_features), jnp.float32)
        return Target.from_flax(self.module, {"params": params}, self.sites, inputs=inputs)
