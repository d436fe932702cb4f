"""Residual MLPs that compute more functions than they have neurons (compressed computation).

Letters: B batch, F features, D residual width, H neurons of a layer.
"""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from apd_jax.errors import UserError
from apd_jax.inputs import SparseFeatures
from apd_jax.losses import activation_function
from apd_jax.sites import Target

Embedding = Literal["random", "identity", "trained"]
LabelKind = Literal["act_plus_residual", "abs"]


def _small_uniform(key, shape, dtype=jnp.float32):
    """Uniform in ±sqrt(6 / (d_in · d_out)), the start of the published targets."""
    bound = (6 / (shape[0] * shape[1])) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class MLP(nn.Module):
    """`act(r W_in + b_in) W_out + b_out`."""

    num_neurons: int
    activation: str
    in_bias: bool
    out_bias: bool

    @nn.compact
    def __call__(self, residual: jax.Array) -> jax.Array:
        pre = nn.Dense(
            self.num_neurons, use_bias=self.in_bias, kernel_init=_small_uniform, name="mlp_in"
        )(residual)
        return nn.Dense(
            residual.shape[-1], use_bias=self.out_bias, kernel_init=_small_uniform, name="mlp_out"
        )(activation_function(self.activation)(pre))


class ResidualMLP(nn.Module):
    """`r = x W_E; r += MLP_l(r) for every layer; y = r W_U` (section 3.2 of the paper).

    Sites: `layers_0/mlp_in`, `layers_0/mlp_out`, `layers_1/mlp_in`, ...

    Attributes:
      num_features: F.
      d_resid: D.
      neurons: H of every layer.
      activation: `"relu"` or `"gelu"`.
      in_bias, out_bias: whether the MLPs have biases before and after the nonlinearity.
      output_activation: apply the nonlinearity to the output as well.
    """

    num_features: int
    d_resid: int
    neurons: tuple[int, ...]
    activation: str = "relu"
    in_bias: bool = False
    out_bias: bool = False
    output_activation: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        initial = nn.initializers.lecun_normal()
        residual = x @ self.param("W_E", initial, (self.num_features, self.d_resid))
        for layer, width in enumerate(self.neurons):
            mlp = MLP(width, self.activation, self.in_bias, self.out_bias, name=f"layers_{layer}")
            residual = residual + mlp(residual)
        output = residual @ self.param("W_U", initial, (self.d_resid, self.num_features))
        return activation_function(self.activation)(output) if self.output_activation else output


@dataclasses.dataclass(frozen=True)
class ResidualMLPTask:
    """A residual MLP, its inputs and labels, and how it is trained.

    Attributes:
      module: the network.
      inputs: distribution of x.
      embedding: `"random"` fixed unit-norm rows with `W_U = W_Eᵀ`, fixed `"identity"`, or
        `"trained"`.
      label_kind: `"act_plus_residual"` for `act(c·x) + x`, `"abs"` for `|c·x|`.
      label_coefficients: c [F]; 1 if None.
      importance: weight of every feature in the loss [F]; 1 if None.
    """

    module: ResidualMLP
    inputs: SparseFeatures
    embedding: Embedding = "random"
    label_kind: LabelKind = "act_plus_residual"
    label_coefficients: tuple[float, ...] | None = None
    importance: tuple[float, ...] | None = None

    def __post_init__(self):
        width, features = self.module.d_resid, self.module.num_features
        if self.embedding not in ("random", "identity", "trained"):
            raise UserError(
                f"embedding must be 'random', 'identity' or 'trained', got {self.embedding!r}"
            )
        if self.embedding == "identity" and width != features:
            raise UserError(
                f"an identity embedding needs d_resid == num_features, got {width} and {features}"
            )
        if self.label_kind not in ("act_plus_residual", "abs"):
            raise UserError(
                f"label_kind must be 'act_plus_residual' or 'abs', got {self.label_kind!r}"
            )
        for name in ("label_coefficients", "importance"):
            values = getattr(self, name)
            if values is not None and len(values) != features:
                raise UserError(
                    f"{name} needs one value for each of {features} features, got {len(values)}"
                )
        weights = self.importance or (1.0,)
        if not (all(0 <= weight < math.inf for weight in weights) and any(weights)):
            raise UserError(
                f"importance needs finite weights, none negative and not all 0, got {weights}"
            )
        if self.inputs.num_features != features:
            raise UserError(
                f"the network has {features} features, its inputs {self.inputs.num_features}"
            )

    @property
    def sites(self) -> tuple[str, ...]:
        """`mlp_in` and `mlp_out` of every layer."""
        return tuple(
            f"layers_{i}/{name}"
            for i in range(len(self.module.neurons))
            for name in ("mlp_in", "mlp_out")
        )

    @property
    def hidden_sites(self) -> tuple[str, ...]:
        """Sites whose outputs the hidden-activation loss compares: `mlp_in` of every layer."""
        return tuple(site for site in self.sites if site.endswith("mlp_in"))

    @property
    def hidden_activation(self) -> str:
        """Nonlinearity of the hidden-activation loss: ReLU, as in the paper's code."""
        return "relu"

    def init(self, key: jax.Array):
        """Draw the parameters before training, the embedding as configured."""
        params = self.module.init(key, jnp.zeros((1, self.module.num_features)))["params"]
        if self.embedding == "identity":
            params["W_E"] = params["W_U"] = jnp.eye(self.module.num_features)
        elif self.embedding == "random":
            rows = jax.random.normal(key, params["W_E"].shape)
            rows = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
            params["W_E"], params["W_U"] = rows, rows.T
        return params

    def is_trained(self, name: str) -> bool:
        """Whether the parameters below a top-level name are trained."""
        return name not in ("W_E", "W_U") or self.embedding == "trained"

    def labels(self, x: jax.Array) -> jax.Array:
        """What the network is trained to output, [B, F]."""
        scaled = x if self.label_coefficients is None else x * jnp.array(self.label_coefficients)
        if self.label_kind == "abs":
            return jnp.abs(scaled)
        return activation_function(self.module.activation)(scaled) + x

    def loss(self, params, x: jax.Array) -> jax.Array:
        """Mean over batch and features of `importance · (f(x) − label)²`."""
        error = jnp.square(self._outputs(params, x) - self.labels(x))
        return jnp.mean(error if self.importance is None else error * jnp.array(self.importance))

    def _outputs(self, params, x: jax.Array) -> jax.Array:
        """`module.apply`, reassociated: the batch never meets the residual width D.

        The residual stream is only ever read through `W_in` and `W_U`, so every write into it is
        multiplied by those first; for F, H << D and a large batch this is many times cheaper.
        """
        module = self.module
        layers = [params[f"layers_{i}"] for i in range(len(module.neurons))]
        writes = [(x, params["W_E"])]
        constant = jnp.zeros(module.d_resid)
        act = activation_function(module.activation)

        def read(matrix):
            return sum(rows @ (basis @ matrix) for rows, basis in writes) + constant @ matrix

        for layer in layers:
            pre = read(layer["mlp_in"]["kernel"]) + layer["mlp_in"].get("bias", 0.0)
            writes.append((act(pre), layer["mlp_out"]["kernel"]))
            constant = constant + layer["mlp_out"].get("bias", 0.0)
        output = read(params["W_U"])
        return act(output) if module.output_activation else output

    def target(self, params) -> Target:
        """The trained network with its sites."""
        return Target.from_flax(self.module, {"params": params}, self.sites)
