"""The hand-coded network: each control bit switches on one function of x (the paper's appendix).

Letters: B batch, n functions, K neurons of a function, H neurons of a layer, D = n + 2 width of the
residual stream, which holds x, the n control bits, and the output.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.config_fields import check_at_least, check_values, setting
from apd_jax.errors import UserError
from apd_jax.sites import Target
from apd_jax.studies.task import Task

Params = dict[str, dict[str, dict[str, jax.Array]]]


class Waves(NamedTuple):
    """The functions `F(x) = a sin(b x + c) + d cos(e x + f) + g`, each field [n].

    Attributes:
      a, d: amplitudes.
      b, e: frequencies.
      c, f: phases.
      g: offset.
    """

    a: jax.Array
    b: jax.Array
    c: jax.Array
    d: jax.Array
    e: jax.Array
    f: jax.Array
    g: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """The n functions at points x [B], [B, n]."""
        x = x[:, None]
        return (
            self.a * jnp.sin(self.b * x + self.c) + self.d * jnp.cos(self.e * x + self.f) + self.g
        )


def draw_waves(key: jax.Array, count: int) -> Waves:
    """Draw functions: `a, d, g ~ U(-1, 1)`, `b, e ~ U(0.1, 1)`, `c, f ~ U(-π, π)`."""
    ranges = {
        "a": (-1, 1),
        "b": (0.1, 1),
        "c": (-np.pi, np.pi),
        "d": (-1, 1),
        "e": (0.1, 1),
        "f": (-np.pi, np.pi),
        "g": (-1, 1),
    }
    keys = jax.random.split(key, len(ranges))
    return Waves(
        **{
            name: jax.random.uniform(k, (count,), minval=low, maxval=high)
            for k, (name, (low, high)) in zip(keys, ranges.items(), strict=True)
        }
    )


@dataclasses.dataclass(frozen=True)
class GatedInputs:
    """Input distribution: x is uniform on its domain, control bits are on with probability p.

    Attributes:
      num_functions: number of functions n.
      probability: probability p that a control bit is on.
      domain: interval of x.
    """

    num_functions: int
    probability: float
    domain: tuple[float, float] = (0.0, 5.0)

    def __call__(self, key: jax.Array, batch_size: int) -> jax.Array:
        """Draw a batch, [B, 1 + n] float32: x, then the bits as 0 and 1."""
        x_key, bit_key = jax.random.split(key)
        low, high = self.domain
        x = jax.random.uniform(x_key, (batch_size, 1), minval=low, maxval=high)
        bits = jax.random.bernoulli(bit_key, self.probability, (batch_size, self.num_functions))
        return jnp.concatenate([x, bits.astype(jnp.float32)], axis=1)


@dataclasses.dataclass(frozen=True)
class GatedFunctions(Task):
    """Size and constants of the hand-coded network, which is not trained.

    Function i is a piecewise-linear interpolation on K evenly spaced knots. Its neuron k computes
    `ReLU(x + S·bit_i − t_k − S)`. This is the ramp `ReLU(x − t_k)` if the bit is on, and 0 if it is
    off. The neuron's output weight is the change of slope at `t_k`. The first ramp starts one knot
    early, so that it produces the function's value at the first knot. Neurons are assigned to
    layers at random, as evenly as their number allows.
    """

    num_functions: int = setting(4, "n, number of functions, each with its own control bit.")
    neurons: int = setting(10, "K, neurons and knots per function; at least 2.")
    num_layers: int = setting(2, "Number of MLP layers that the neurons are distributed over.")
    low: float = setting(0.0, "Lower end of the domain of x.")
    high: float = setting(5.0, "Upper end of the domain of x.")
    suppression: float = setting(
        100.0,
        "S, weight that silences a neuron while its bit is off; larger than the domain's length.",
    )
    probability: float = setting(0.05, "Probability that a control bit is on.")

    def __post_init__(self):
        check_values(self)
        check_at_least(self, 1, "num_functions", "num_layers")
        check_at_least(self, 2, "neurons")
        if self.num_layers > self.num_functions * self.neurons:
            raise UserError(
                f"num_layers must be at most the number of neurons, "
                f"{self.num_functions * self.neurons}, got {self.num_layers}"
            )
        if not self.low < self.high:
            raise UserError(f"low must be below high, got {self.low} and {self.high}")
        if not self.suppression > self.high - self.low:
            raise UserError(
                f"suppression must exceed the length of the domain, {self.high - self.low}, so "
                f"that neurons are silent while their bit is off; got {self.suppression}"
            )
        if not 0 < self.probability <= 1:
            raise UserError(f"probability must be in (0, 1], got {self.probability}")

    @property
    def inputs(self) -> GatedInputs:
        """The distribution of x and the control bits."""
        return GatedInputs(self.num_functions, self.probability, self.domain)

    @property
    def hidden_sites(self) -> tuple[str, ...]:
        """The sites that the hidden-activation loss compares: the inputs of all neurons."""
        return tuple(f"layers_{i}/mlp_in/kernel" for i in range(self.num_layers))

    @property
    def hidden_activation(self) -> str:
        """The nonlinearity of the hidden-activation loss: the network's own."""
        return "relu"

    @property
    def domain(self) -> tuple[float, float]:
        """The interval of x."""
        return self.low, self.high

    @property
    def width(self) -> int:
        """D, the width of the residual stream."""
        return self.num_functions + 2

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """H of every layer."""
        parts = np.array_split(np.arange(self.num_functions * self.neurons), self.num_layers)
        return tuple(len(part) for part in parts)

    @property
    def knots(self) -> np.ndarray:
        """The points at which the network equals its functions, [K]."""
        return np.linspace(*self.domain, self.neurons)

    def init(self, key: jax.Array) -> Params:
        """Draw functions and encode them in weights.

        Args:
          key: PRNG key; the same key gives the same network.

        Returns:
          `{"layers_0": {"mlp_in": {"kernel": [D, H], "bias": [H]}, "mlp_out": {"kernel": [H, D]}}}`
          and so on, float32.
        """
        function_key, deal_key = jax.random.split(key)
        ramps, slopes = self._ramps(draw_waves(function_key, self.num_functions))
        total = slopes.size
        order = jax.random.permutation(deal_key, total)
        params, start = {}, 0
        for layer, width in enumerate(self.layer_widths):
            chosen = order[start : start + width]
            start += width
            params[f"layers_{layer}"] = self._layer(
                chosen // self.neurons, ramps[chosen % self.neurons], slopes.ravel()[chosen]
            )
        return params

    def _ramps(self, waves: Waves) -> tuple[jax.Array, jax.Array]:
        """The starts of the ramps [K], and the functions' slope changes there [n, K]."""
        spacing = self.knots[1] - self.knots[0]
        starts = jnp.asarray(self.knots - spacing, jnp.float32)
        values = waves(jnp.asarray(self.knots, jnp.float32)).T
        slopes = jnp.diff(values, axis=1, prepend=0.0) / spacing
        return starts, jnp.diff(slopes, axis=1, prepend=0.0)

    def _layer(self, owners: jax.Array, starts: jax.Array, slopes: jax.Array):
        """A layer of H neurons, given function, ramp and slope change of each, [H]."""
        columns = jnp.arange(owners.size)
        reads = jnp.zeros((self.width, owners.size)).at[0].set(1.0)
        reads = reads.at[1 + owners, columns].set(self.suppression)
        writes = jnp.zeros((owners.size, self.width)).at[:, -1].set(slopes)
        bias = -starts - self.suppression
        return {"mlp_in": {"kernel": reads, "bias": bias}, "mlp_out": {"kernel": writes}}

    def target(self, params: Params) -> Target:
        """The network with its sites, two per layer; biases stay fixed."""
        inputs = jax.ShapeDtypeStruct((2, 1 + self.num_functions), jnp.float32)
        return Target(self.apply, params, inputs=inputs)

    def apply(self, params: Params, inputs: jax.Array) -> jax.Array:
        """Run the network: `r = (x, bits, 0); r += ReLU(r W_in + b) W_out` for every layer.

        Args:
          params: parameters as returned by `init`.
          inputs: x and the control bits, [B, 1 + n].

        Returns:
          The last entry of the residual stream, [B, 1].
        """
        residual = jnp.concatenate([inputs, jnp.zeros_like(inputs[:, :1])], axis=1)
        for layer in range(self.num_layers):
            mlp_in, mlp_out = (params[f"layers_{layer}"][name] for name in ("mlp_in", "mlp_out"))
            hidden = jax.nn.relu(residual @ mlp_in["kernel"] + mlp_in["bias"])
            residual = residual + hidden @ mlp_out["kernel"]
        return residual[:, -1:]


def owners(params: Params) -> dict[str, np.ndarray]:
    """The function of every neuron, that of the only bit it reads, `{layer: int [H]}`."""
    return {
        name: np.asarray(layer["mlp_in"]["kernel"][1:-1]).argmax(axis=0)
        for name, layer in params.items()
    }
