"""Plain functions that people write less often, and that are right all the same."""

import jax
import jax.numpy as jnp

from zoo.network import NETWORKS, B, Network, T, normal, weights


@NETWORKS.entry
def map_over_examples():
    """A scan over the batch: each turn is an example of its own."""
    params = weights(a=(4, 5), b=(5, 2))

    def apply(params, x):
        return jax.lax.map(lambda row: jnp.tanh(row @ params["a"]) @ params["b"], x)

    return Network(apply, params, normal(B, 4), {"a": (4, 5), "b": (5, 2)})


@NETWORKS.entry
def more_outputs_than_are_pulled_back_at_once():
    params = weights(a=(4, 3), b=(3, 150))

    def apply(params, x):
        return jnp.tanh(x @ params["a"]) @ params["b"]

    return Network(apply, params, normal(B, 4), {"a": (4, 3), "b": (3, 150)})


@NETWORKS.entry
def parameter_of_whole_numbers():
    params = weights(a=(4, 5), b=(5, 2)) | {"order": jnp.array([2, 0, 3, 1])}

    def apply(params, x):
        return jnp.tanh(x[:, params["order"]] @ params["a"]) @ params["b"]

    return Network(apply, params, normal(B, 4), {"a": (4, 5), "b": (5, 2)})


@NETWORKS.entry
def rows_of_a_weight_for_two_inputs():
    params = weights(w=(6, 5), out=(5, 2))

    def apply(params, inputs):
        left, right = inputs
        h = left @ params["w"][:2] + right @ params["w"][2:]
        return jnp.tanh(h) @ params["out"]

    inputs = normal(B, 2, seed=1), normal(B, 4, seed=2)
    return Network(apply, params, inputs, {"w": (6, 5), "out": (5, 2)})


@NETWORKS.entry
def corner_of_a_weight():
    params = weights(w=(6, 5), out=(3, 2))

    def apply(params, x):
        return jnp.tanh(x @ params["w"][1:5, ::2]) @ params["out"]

    return Network(apply, params, normal(B, 4), {"w": (6, 5), "out": (3, 2)})


@NETWORKS.entry
def weight_repeated_for_every_example():
    params = weights(w=(4, 5), out=(5, 2))

    def apply(params, x):
        repeated = jnp.broadcast_to(params["w"], (len(x), 4, 5))
        return jnp.tanh(jnp.einsum("bd,bdf->bf", x, repeated)) @ params["out"]

    return Network(apply, params, normal(B, 4), {"w": (4, 5), "out": (5, 2)})


@NETWORKS.entry
def gradient_of_an_energy():
    params = weights(w=(4, 5), v=(5, 3))

    def energy(x, params):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ params["w"]) @ params["v"]))

    return Network(
        lambda params, x: jax.grad(energy)(x, params),
        params,
        normal(B, 4),
        {"w": (4, 5), "v": (5, 3)},
    )


@NETWORKS.entry
def differences_of_positions():
    params = weights(a=(4, 5), b=(5, 3))

    def apply(params, x):
        h = jnp.tanh((x[:, 1:] - x[:, :-1]) @ params["a"])
        return (h[:, ::-1] @ params["b"]).sum(1)

    return Network(apply, params, normal(B, T, 4), {"a": (4, 5), "b": (5, 3)})


@NETWORKS.entry
def parameters_that_are_one_array():
    return Network(lambda w, x: jnp.tanh(x @ w), normal(4, 3, seed=1), normal(B, 4), {"": (4, 3)})
