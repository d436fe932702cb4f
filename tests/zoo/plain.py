"""Plain functions: how parameters may be held, how a product may be written."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo.network import NETWORKS, B, Network, T, normal, per_position, weights


@NETWORKS.entry
def list_of_layers():
    layers = [weights(w=(4, 5), b=(5,)), weights(w=(5, 2), b=(2,))]

    def apply(params, x):
        for layer in params[:-1]:
            x = jnp.tanh(x @ layer["w"] + layer["b"])
        return x @ params[-1]["w"] + params[-1]["b"]

    return Network(apply, layers, normal(B, 4), {"0/w": (4, 5), "1/w": (5, 2)})


@NETWORKS.entry
def tuple_of_matrices():
    params = (normal(4, 5, seed=1), normal(5, 3, seed=2))
    sites = {"0": (4, 5), "1": (5, 3)}
    return Network(lambda p, x: jnp.sin(x @ p[0]) @ p[1], params, normal(B, 4), sites)


class _Layer(NamedTuple):
    matrix: jax.Array
    offset: jax.Array


@NETWORKS.entry
def named_tuples():
    params = {
        "in": _Layer(normal(3, 4, seed=1), normal(4, seed=2)),
        "out": _Layer(normal(4, 2, seed=3), normal(2, seed=4)),
    }

    def apply(params, x):
        h = jax.nn.relu(x @ params["in"].matrix + params["in"].offset)
        return h @ params["out"].matrix + params["out"].offset

    return Network(apply, params, normal(B, 3), {"in/matrix": (3, 4), "out/matrix": (4, 2)})


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Gated:
    gate: jax.Array
    value: jax.Array
    out: list[jax.Array]


@NETWORKS.entry
def dataclass_of_a_gated_unit():
    params = _Gated(normal(4, 5, seed=1), normal(4, 5, seed=2), [normal(5, 3, seed=3)])

    def apply(params, x):
        return (jax.nn.silu(x @ params.gate) * (x @ params.value)) @ params.out[0]

    sites = {"gate": (4, 5), "value": (4, 5), "out/0": (5, 3)}
    return Network(apply, params, normal(B, 4), sites)


@NETWORKS.entry
def vector_weight():
    params = weights(w=(4,), scale=())
    apply = lambda p, x: jnp.tanh(x @ p["w"]) * p["scale"]  # noqa: E731
    return Network(apply, params, normal(B, 4), {"w": (4, 1)})


@NETWORKS.entry
def scalar_output():
    params = weights(a=(4, 5), b=(5, 1))
    apply = lambda p, x: (jnp.tanh(x @ p["a"]) @ p["b"])[:, 0]  # noqa: E731
    return Network(apply, params, normal(B, 4), {"a": (4, 5), "b": (5, 1)})


@NETWORKS.entry
def square_matrix_and_its_transpose():
    params = weights(w=(4, 4))
    apply = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T  # noqa: E731
    return Network(apply, params, normal(B, 4), {"w": (4, 4)})


@NETWORKS.entry
def weight_used_three_times():
    params = weights(w=(4, 4), out=(4, 2))

    def apply(params, x):
        for _ in range(3):
            x = x + jnp.tanh(x @ params["w"])
        return x @ params["out"]

    return Network(apply, params, normal(B, 4), {"w": (4, 4), "out": (4, 2)})


@NETWORKS.entry
def weight_on_the_left():
    params = weights(a=(5, 4), b=(2, 5))

    def apply(params, x):
        return (params["b"] @ jnp.tanh(params["a"] @ x.T)).T

    return Network(apply, params, normal(B, 4), {"a": (4, 5), "b": (5, 2)})


@NETWORKS.entry
def vmap_over_examples():
    params = weights(a=(5, 4), bias=(5,), b=(5, 2))

    def one(params, x):
        return jnp.tanh(params["a"] @ x + params["bias"]) @ params["b"]

    apply = jax.vmap(one, in_axes=(None, 0))
    return Network(apply, params, normal(B, 4), {"a": (4, 5), "b": (5, 2)})


@NETWORKS.entry
def low_rank_product():
    params = weights(a=(4, 2), b=(2, 5), out=(5, 3))
    apply = lambda p, x: jnp.tanh(x @ p["a"] @ p["b"]) @ p["out"]  # noqa: E731
    sites = {"a": (4, 2), "b": (2, 5), "out": (5, 3)}
    return Network(apply, params, normal(B, 4), sites)


@NETWORKS.entry
def parameter_without_use():
    params = weights(a=(4, 3), idle=(3, 3), bias=(3,))
    return Network(lambda p, x: x @ p["a"] + p["bias"], params, normal(B, 4), {"a": (4, 3)})


@NETWORKS.entry
def some_sites_by_glob():
    params = {"mlp": [weights(w=(4, 4)), weights(v=(4, 4))], "out": weights(w=(4, 2))}

    def apply(params, x):
        x = x + jnp.tanh(x @ params["mlp"][0]["w"])
        x = x + jnp.tanh(x @ params["mlp"][1]["v"])
        return x @ params["out"]["w"]

    sites = {"mlp/0/w": (4, 4), "mlp/1/v": (4, 4)}
    return Network(apply, params, normal(B, 4), sites, select="mlp/*")


@NETWORKS.entry
def mixed_axes_of_a_larger_weight():
    params = weights(w=(2, 3, 4, 2), out=(2, 3, 3))

    def apply(params, x):
        h = jnp.tanh(jnp.einsum("bac,adce->bed", x, params["w"]))
        return jnp.tensordot(h, params["out"], axes=((1, 2), (0, 1)))

    return Network(apply, params, normal(B, 2, 4), {"w": (8, 6), "out": (6, 3)})


@NETWORKS.entry
def bias_as_a_product_with_ones():
    params = weights(w=(4, 3), b=(1, 3))

    def apply(params, x):
        return jnp.tanh(x @ params["w"] + jnp.ones((len(x), 1)) @ params["b"])

    return Network(apply, params, normal(B, 4), {"w": (4, 3), "b": (1, 3)})


@NETWORKS.entry
def vector_repeated_along_the_contracted_axis():
    params = weights(w=(5,), out=(5, 2))

    def apply(params, x):
        return jnp.tanh(x @ jnp.broadcast_to(params["w"], (4, 5))) @ params["out"]

    return Network(apply, params, normal(B, 4), {"w": (1, 5), "out": (5, 2)})


@NETWORKS.entry
def dictionary_outputs():
    params = weights(trunk=(4, 5), mean=(5, 2), value=(5,))

    def apply(params, x):
        h = jnp.tanh(x @ params["trunk"])
        return {"mean": h @ params["mean"], "value": h @ params["value"]}

    sites = {"trunk": (4, 5), "mean": (5, 2), "value": (5, 1)}
    return Network(apply, params, normal(B, 4), sites)


@NETWORKS.entry
def two_inputs():
    params = weights(state=(4, 5), action=(2, 5), out=(5, 3))

    def apply(params, inputs):
        h = inputs["state"] @ params["state"] + inputs["action"][0] @ params["action"]
        return jnp.tanh(h) @ params["out"]

    inputs = {"state": normal(B, 4, seed=1), "action": (normal(B, 2, seed=2),)}
    sites = {"state": (4, 5), "action": (2, 5), "out": (5, 3)}
    return Network(apply, params, inputs, sites)


@NETWORKS.entry
def positions():
    params = weights(a=(4, 5), bias=(5,), b=(5, 3))

    def apply(params, x, product=jnp.matmul):
        h = jnp.tanh(product(x, params["a"]) + params["bias"])
        return product(h, params["b"])

    def by_position(params, x):
        return apply(params, x, per_position)

    sites = {"a": (4, 5), "b": (5, 3)}
    return Network(apply, params, normal(B, T, 4), sites, by_position=by_position)


@NETWORKS.entry
def positions_merged_with_examples():
    params = weights(a=(4, 5), b=(5, 3))

    def apply(params, x):
        h = jnp.tanh(x.reshape(-1, 4) @ params["a"])
        return (h @ params["b"]).reshape(*x.shape[:2], 3)

    def by_position(params, x):
        return per_position(jnp.tanh(per_position(x, params["a"])), params["b"])

    sites = {"a": (4, 5), "b": (5, 3)}
    return Network(apply, params, normal(B, T, 4), sites, by_position=by_position)


@NETWORKS.entry
def positions_first():
    params = weights(a=(4, 5), mix=(T, T), b=(5, 3))

    def apply(params, x):
        h = jnp.tanh(jnp.swapaxes(x, 0, 1) @ params["a"])
        h = jnp.einsum("tbd,ts->sbd", h, params["mix"])
        return (h @ params["b"]).mean(0)

    sites = {"a": (4, 5), "mix": (T, T), "b": (5, 3)}
    return Network(apply, params, normal(B, T, 4), sites)


@NETWORKS.entry
def positions_flattened_into_the_width():
    params = weights(a=(2, 3), b=(3 * T, 5), out=(5, 2))

    def apply(params, x):
        h = jnp.tanh(x @ params["a"]).reshape(x.shape[0], -1)
        return jnp.tanh(h @ params["b"]) @ params["out"]

    sites = {"a": (2, 3), "b": (3 * T, 5), "out": (5, 2)}
    return Network(apply, params, normal(B, T, 2), sites)


@NETWORKS.entry
def bfloat16_compute():
    params = weights(a=(4, 5), b=(5, 2))

    def apply(params, x):
        a, b = params["a"].astype(jnp.bfloat16), params["b"].astype(jnp.bfloat16)
        return (jnp.tanh(x.astype(jnp.bfloat16) @ a) @ b).astype(jnp.float32)

    sites = {"a": (4, 5), "b": (5, 2)}
    return Network(apply, params, normal(B, 4), sites, tolerance=3e-2)
