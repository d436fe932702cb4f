"""Plain functions that people write less often, and that are right all the same."""

import jax
import jax.numpy as jnp

from zoo.network import NETWORKS, VOCABULARY, B, Network, T, normal, tokens, weights


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
def rows_of_a_weight_in_another_order():
    params = weights(w=(4, 5), out=(5, 2))

    def apply(params, x):
        w = jax.lax.optimization_barrier(params["w"])[jnp.array([2, 0, 3, 1])]
        return jnp.tanh(x @ w) @ jnp.take(params["out"], jnp.array([4, 1, 0, 2, 3]), axis=0)

    return Network(apply, params, normal(B, 4), {"w": (4, 5), "out": (5, 2)})


@NETWORKS.entry
def rows_and_columns_of_a_weight_used_twice():
    params = weights(w=(4, 3), out=(8, 2))

    def apply(params, x):
        w = params["w"][jnp.array([2, 0, 2, 1])][:, jnp.array([[0, 1], [1, 2]])]
        h = jnp.tanh(jnp.einsum("bd,dij->bij", x, w))
        h = jnp.concatenate([h.reshape(-1, 4), x], axis=1)
        return h @ params["out"] + x[:, :2] @ jnp.tile(params["out"][:1], (2, 1))

    return Network(apply, params, normal(B, 4), {"w": (4, 3), "out": (8, 2)})


@NETWORKS.entry
def weight_tiled():
    params = weights(w=(2, 3), out=(6, 2))

    def apply(params, x):
        w = jax.ad_checkpoint.checkpoint_name(jnp.tile(params["w"], (2, 2)), "w")
        return jnp.tanh(x @ w) @ jax.device_put(params["out"])

    return Network(apply, params, normal(B, 4), {"w": (2, 3), "out": (6, 2)})


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


@NETWORKS.entry
def product_of_whole_numbers():
    """Counts that are multiplied, among them numbers that are no row of the weight."""
    params = weights(a=(4, 5), b=(5, 2))

    def apply(params, x):
        return jnp.tanh(x @ params["a"]) @ params["b"]

    return Network(apply, params, 3 * tokens(B, 4), {"a": (4, 5), "b": (5, 2)})


@NETWORKS.entry
def product_of_whole_one_hot_rows():
    params = weights(a=(VOCABULARY, 4), b=(4, 2))

    def apply(params, x):
        rows = jax.nn.one_hot(x, VOCABULARY, dtype=jnp.int32)
        return jnp.tanh(rows @ params["a"]).sum(axis=1) @ params["b"]

    return Network(apply, params, tokens(B, T), {"a": (VOCABULARY, 4), "b": (4, 2)})


def _padded(fill):
    params = weights(table=(VOCABULARY, 4), b=(4, 2))

    def apply(params, x):
        rows = jnp.take(params["table"], x, axis=0, mode="fill", fill_value=fill)
        return jnp.tanh(rows).sum(axis=1) @ params["b"]

    padded = tokens(B, T).at[:, -1].set(VOCABULARY).at[0, 0].set(VOCABULARY + 3)
    return Network(apply, params, padded, {"table": (VOCABULARY, 4), "b": (4, 2)})


@NETWORKS.entry
def look_up_with_padding():
    """Indices past the table stand for rows of zeros."""
    return _padded(0)


@NETWORKS.entry
def look_up_with_padding_of_another_value():
    return _padded(0.5)
