"""A small byte-level transformer, and how it is trained.

Letters: B batch, T positions, d width, H heads, V vocabulary (256 bytes).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from apd_jax.config_fields import check_at_least, check_values, setting
from apd_jax.errors import UserError
from apd_jax.sites import Target
from apd_jax.studies.language_model.text import VOCABULARY, Contexts
from apd_jax.studies.task import TargetTraining, Task

Params = dict[str, Any]


def _normalise(r: jax.Array) -> jax.Array:
    """Scale every position's vector to a root mean square of 1."""
    return r * jax.lax.rsqrt(jnp.mean(jnp.square(r), axis=-1, keepdims=True) + 1e-6)


def _attention(layer: Params, r: jax.Array, heads: int) -> jax.Array:
    """Causal self-attention, [B, T, d]."""
    shape = (*r.shape[:2], heads, -1)
    query, key, value = ((r @ layer[name]).reshape(shape) for name in ("query", "key", "value"))
    mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    return mixed.reshape(r.shape) @ layer["out"]


def _mlp(layer: Params, r: jax.Array) -> jax.Array:
    """`GELU(r W_up) W_down`, [B, T, d]."""
    return jax.nn.gelu(r @ layer["up"]) @ layer["down"]


@dataclasses.dataclass(frozen=True)
class Transformer:
    """Logits of the next byte, [B, T, V], of contexts [B, T].

    `r = E[x] + P; r += attention(norm(r)); r += mlp(norm(r))` per layer, then `norm(r) W_U`.

    Attributes:
      heads: H.
    """

    heads: int

    def __call__(self, params: Params, x: jax.Array) -> jax.Array:
        """Run the network."""
        r = params["embedding"][x] + params["positions"][: x.shape[1]]
        for layer in params["blocks"]:
            r = r + _attention(layer["attention"], _normalise(r), self.heads)
            r = r + _mlp(layer["mlp"], _normalise(r))
        return _normalise(r) @ params["unembedding"]


@dataclasses.dataclass(frozen=True)
class LanguageModel(Task):
    """A byte-level transformer of Python source; its block matrices are decomposed."""

    layers: int = setting(2, "Transformer blocks.")
    width: int = setting(64, "d, width of the residual stream.")
    heads: int = setting(4, "H, attention heads of a block.")
    mlp_width: int = setting(256, "Neurons of a block.")
    context: int = setting(64, "T, bytes of a context.")
    text_bytes: int = setting(4_000_000, "Size of the text that it is trained on.")
    steps: int = setting(4000, "Steps of its training; 0 to take the network as it is drawn.")
    batch_size: int = setting(64, "Contexts of a step of its training.")
    learning_rate: float = setting(3e-3, "Peak learning rate of its training.")
    weight_decay: float = setting(0.01, "Decoupled weight decay of its training.")

    def __post_init__(self):
        check_values(self)
        check_at_least(self, 1, "layers", "width", "heads", "mlp_width", "batch_size")
        check_at_least(self, 2, "context")
        if self.width % self.heads:
            raise UserError(f"heads must divide the width, {self.width}, got {self.heads}")
        if self.text_bytes <= self.context:
            raise UserError(
                f"text_bytes must be above the context, {self.context}, got {self.text_bytes}"
            )
        self.training  # noqa: B018, refuses what it can't take

    @property
    def inputs(self) -> Contexts:
        """Contexts of the text that the network is trained on."""
        return Contexts(self.context, self.text_bytes)

    @property
    def held_out(self) -> Contexts:
        """Contexts of files that no training sees."""
        return Contexts(self.context, max(self.text_bytes // 10, self.context), held_out=True)

    @property
    def loss_inputs(self) -> Contexts:
        """The held-out text."""
        return self.held_out

    @property
    def loss_batches(self) -> tuple[int, int]:
        """Half a thousand contexts."""
        return 8, 64

    @property
    def training(self) -> TargetTraining:
        """How the network is trained."""
        return TargetTraining(
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
        )

    def init(self, key: jax.Array) -> Params:
        """Draw the parameters: normal entries of variance 1/d_in, small where blocks write."""
        keys = iter(jax.random.split(key, 3 + 6 * self.layers))

        def matrix(d_in, d_out, gain=1.0):
            return gain / d_in**0.5 * jax.random.normal(next(keys), (d_in, d_out))

        d, n = self.width, self.mlp_width
        small = (2 * self.layers) ** -0.5  # the stream's size then doesn't grow with the layers
        return {
            "embedding": jax.random.normal(next(keys), (VOCABULARY, d)),
            "positions": 0.1 * jax.random.normal(next(keys), (self.context, d)),
            "blocks": [
                {
                    "attention": {
                        "query": matrix(d, d),
                        "key": matrix(d, d),
                        "value": matrix(d, d),
                        "out": matrix(d, d, small),
                    },
                    "mlp": {"up": matrix(d, n), "down": matrix(n, d, small)},
                }
                for _ in range(self.layers)
            ],
            "unembedding": matrix(d, VOCABULARY, 0.1),
        }

    def is_trained(self, name: str) -> bool:
        """All parameters are trained."""
        del name
        return True

    def loss(self, params: Params, x: jax.Array) -> jax.Array:
        """Mean cross entropy of the next byte in nats, over all positions that have one."""
        return jnp.mean(next_byte_losses(Transformer(self.heads)(params, x), x))

    def target(self, params: Params) -> Target:
        """The network with its block matrices as sites."""
        inputs = jax.ShapeDtypeStruct((2, self.context), jnp.int32)
        return Target(Transformer(self.heads), params, inputs=inputs, sites="blocks/*")


def next_byte_losses(logits: jax.Array, x: jax.Array) -> jax.Array:
    """Cross entropy of every next byte in nats, [B, T-1].

    Args:
      logits: [B, T, V].
      x: [B, T] bytes.
    """
    log_probabilities = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.take_along_axis(log_probabilities, x[:, 1:, None], axis=-1)[..., 0]
