"""Flax NNX modules, by `nnx.split` and `nnx.merge`; everything but `nnx.Param` is fixed."""

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.network import NETWORKS, VOCABULARY, B, Network, T, drawn, normal, tokens


def _network(build, inputs, sites):
    graph, params, rest = nnx.split(build(nnx.Rngs(0)), nnx.Param, ...)
    apply = lambda params, x: nnx.merge(graph, params, rest, copy=True)(x)  # noqa: E731
    return Network(apply, drawn(params), inputs, sites)


class _Perceptron(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 5, rngs=rngs)])
        self.norm = nnx.BatchNorm(5, use_running_average=True, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.out = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = self.drop(jax.nn.relu(self.norm(layer(x))))
        return self.out(x)


@NETWORKS.entry
def nnx_perceptron():
    sites = {
        "layers/0/kernel/value": (4, 5),
        "layers/1/kernel/value": (5, 5),
        "out/kernel/value": (5, 2),
    }
    return _network(_Perceptron, normal(B, 4), sites)


class _Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.up = nnx.Linear(4, 5, rngs=rngs)
        self.down = nnx.Linear(5, 4, rngs=rngs)

    def __call__(self, x):
        h = self.embed(x)
        h = h + self.attention(self.norm(h), mask=nnx.make_causal_mask(x))
        h = h + self.down(jax.nn.gelu(self.up(h)))
        return self.embed.attend(h)


@NETWORKS.entry
def nnx_transformer():
    sites = {
        "embed/embedding/value": (VOCABULARY, 4),
        "up/kernel/value": (4, 5),
        "down/kernel/value": (5, 4),
    }
    sites |= {f"attention/{name}/kernel/value": (4, 4) for name in ("query", "key", "value", "out")}
    return _network(_Transformer, tokens(B, T), sites)


class _Images(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), strides=2, feature_group_count=2, rngs=rngs)
        self.general = nnx.LinearGeneral((2, 4), 3, axis=(-2, -1), rngs=rngs)

    def __call__(self, x):
        return self.general(jnp.tanh(self.conv(x)).mean(1))


@NETWORKS.entry
def nnx_convolution_and_general_linear():
    sites = {"conv/kernel/value": (2, 9, 2), "general/kernel/value": (8, 3)}
    return _network(_Images, normal(B, 4, 4, 2), sites)


class _Recurrent(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs))
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.rnn(x))


@NETWORKS.entry
def nnx_gru():
    sites = {
        "rnn/cell/dense_i/kernel/value": (3, 12),
        "rnn/cell/dense_h/kernel/value": (4, 12),
        "out/kernel/value": (4, 2),
    }
    return _network(_Recurrent, normal(B, T, 3), sites)


class _Block(nnx.Module):
    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 4, rngs=rngs)

    def __call__(self, x):
        return x + self.down(jax.nn.relu(self.up(x)))


class _Scanned(nnx.Module):
    """Layers in a scan with remat that collects a kernel of each, of which one is used again."""

    def __init__(self, rngs):
        make = nnx.split_rngs(splits=3)(nnx.vmap(_Block, in_axes=(0,), out_axes=0))
        self.blocks = make(rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=(nnx.Carry, 0))
        @nnx.remat
        def layer(block, x):
            return block(x), block.up.kernel[...]

        h, kernels = layer(self.blocks, x)
        return self.out(h + jnp.tanh(x @ kernels[1])[..., :4])


@NETWORKS.entry
def nnx_scan_with_remat_that_collects_kernels():
    sites = {f"blocks/up/kernel/value[{i}]": (4, 5) for i in range(3)}
    sites |= {f"blocks/down/kernel/value[{i}]": (5, 4) for i in range(3)}
    return _network(_Scanned, normal(B, 4), sites | {"out/kernel/value": (4, 2)})
