"""Equinox modules under `jax.vmap`: the weight stands on the left, `[d_out, d_in]`."""

import equinox as eqx
import jax
import jax.numpy as jnp

from zoo.network import NETWORKS, VOCABULARY, B, Network, T, drawn, normal, tokens


def _network(build, inputs, sites):
    params, static = eqx.partition(build(jax.random.key(0)), eqx.is_inexact_array)
    apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)  # noqa: E731
    return Network(apply, drawn(params), inputs, sites)


@NETWORKS.entry
def equinox_perceptron():
    sites = {"layers/0/weight": (4, 5), "layers/1/weight": (5, 5), "layers/2/weight": (5, 2)}
    return _network(lambda key: eqx.nn.MLP(4, 2, 5, 2, key=key), normal(B, 4), sites)


@NETWORKS.entry
def equinox_convolutions():
    def build(key):
        return eqx.nn.Sequential(
            [
                eqx.nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=1, key=key),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.Conv2d(4, 4, 2, groups=2, key=key),
                eqx.nn.Lambda(jnp.ravel),
                eqx.nn.Linear(16, 2, key=key),
            ]
        )

    sites = {"layers/0/weight": (12, 4), "layers/2/weight": (2, 8, 2), "layers/4/weight": (16, 2)}
    return _network(build, normal(B, 2, 4, 4), sites)


class _Block(eqx.Module):
    embed: eqx.nn.Embedding
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.embed = eqx.nn.Embedding(VOCABULARY, 4, key=keys[0])
        self.attention = eqx.nn.MultiheadAttention(2, 4, key=keys[1])
        self.norm = eqx.nn.LayerNorm(4)
        self.up = eqx.nn.Linear(4, 5, key=keys[2])
        self.down = eqx.nn.Linear(5, 4, key=keys[3])

    def __call__(self, x):
        h = jax.vmap(self.embed)(x)
        mask = jnp.tril(jnp.ones((len(x), len(x)), bool))
        h = h + self.attention(h, h, h, mask=mask)
        return h + jax.vmap(lambda row: self.down(jax.nn.gelu(self.up(self.norm(row)))))(h)


@NETWORKS.entry
def equinox_transformer():
    sites = {"embed/weight": (VOCABULARY, 4), "up/weight": (4, 5), "down/weight": (5, 4)}
    names = ("query_proj", "key_proj", "value_proj", "output_proj")
    sites |= {f"attention/{name}/weight": (4, 4) for name in names}
    return _network(_Block, tokens(B, T), sites)


class _Recurrent(eqx.Module):
    cell: eqx.nn.GRUCell
    out: eqx.nn.Linear

    def __init__(self, key):
        self.cell = eqx.nn.GRUCell(3, 4, key=key)
        self.out = eqx.nn.Linear(4, "scalar", key=key)

    def __call__(self, x):
        h, _ = jax.lax.scan(lambda h, x_t: (self.cell(x_t, h), None), jnp.zeros(4), x)
        return self.out(h)


@NETWORKS.entry
def equinox_gru():
    sites = {"cell/weight_ih": (3, 12), "cell/weight_hh": (4, 12), "out/weight": (4, 1)}
    return _network(_Recurrent, normal(B, T, 3), sites)


class _Stacked(eqx.Module):
    layers: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, key):
        make = lambda key: eqx.nn.Linear(4, 4, key=key)  # noqa: E731
        self.layers = eqx.filter_vmap(make)(jax.random.split(key, 3))
        self.out = eqx.nn.Linear(4, 2, key=key)

    def __call__(self, x):
        arrays, static = eqx.partition(self.layers, eqx.is_array)

        def step(h, leaves):
            return h + jnp.tanh(eqx.combine(leaves, static)(h)), None

        return self.out(jax.lax.scan(step, x, arrays)[0])


@NETWORKS.entry
def equinox_layers_in_a_scan():
    sites = {f"layers/weight[{i}]": (4, 4) for i in range(3)} | {"out/weight": (4, 2)}
    return _network(_Stacked, normal(B, 4), sites)
