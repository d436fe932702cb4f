"""Parameters that can't be decomposed, and questions without an answer: each has its error."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.lax import conv_general_dilated as convolve

from zoo.network import REFUSED, B, Refused, T, drawn, normal, weights

OTHER = r"w \[.*"


def _beside(apply, message, select="w", leaf="w", **shapes):
    """A network with the site `out` behind what `apply` does with its parameters."""
    params = weights(**{"w": (4, 5), "out": (5, 2), **shapes})

    def network(params, x):
        return jnp.tanh(apply(params, x)) @ params["out"]

    return Refused(network, params, normal(B, 4), select, message, leaf)


@REFUSED.entry
def weight_times_two():
    return _beside(lambda p, x: x @ (2 * p["w"]), OTHER + "mul")


@REFUSED.entry
def weight_cast_to_whole_numbers():
    def apply(p, x):
        return x @ p["w"].astype(jnp.int32).astype(jnp.float32)

    return _beside(apply, OTHER + "convert_element_type")


@REFUSED.entry
def weight_of_two_binary_digits():
    return _beside(lambda p, x: x @ jax.lax.reduce_precision(p["w"], 8, 2), OTHER + "reduce_prec")


@REFUSED.entry
def weight_norm():
    def apply(p, x):
        return x @ (p["gain"] * p["w"] / jnp.linalg.norm(p["w"], axis=0))

    return _beside(apply, OTHER, gain=(5,))


class _WeightNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="out")(nn.WeightNorm(nn.Dense(5), name="normed")(x))


@REFUSED.entry
def linen_weight_norm():
    module, x = _WeightNorm(), normal(B, 4)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    apply = lambda p, x: module.apply({"params": p}, x)  # noqa: E731
    leaf = "Dense_0/kernel"
    return Refused(apply, drawn(shapes), x, "Dense_0/*", leaf + r" \[4, 5\]: mul", leaf)


@REFUSED.entry
def norm_of_the_weight_in_the_output():
    return _beside(lambda p, x: x @ p["w"] + jnp.sum(p["w"] ** 2), OTHER)


@REFUSED.entry
def elementwise_as_well():
    return _beside(lambda p, x: x @ p["w"] + x[:, :1] * p["w"][0], OTHER)


@REFUSED.entry
def product_of_two_parameters():
    return _beside(lambda p, x: x @ (p["v"] @ p["w"]), OTHER + "dot_general", v=(4, 4))


@REFUSED.entry
def weight_with_its_own_transpose():
    return _beside(lambda p, x: x @ p["w"] @ (p["w"].T @ p["w"]), OTHER + "dot_general")


@REFUSED.entry
def adapter_of_low_rank():
    def apply(p, x):
        return x @ (p["w"] + p["a"] @ p["b"])

    return _beside(apply, OTHER + "add", a=(4, 2), b=(2, 5))


@REFUSED.entry
def convolution_of_two_parameters():
    def apply(p, x):
        numbers = ("NWC", "WIO", "NWC")
        kernel = convolve(p["v"], p["w"], (1,), "SAME", dimension_numbers=numbers)
        return x @ kernel[0]

    return _beside(apply, OTHER + "conv_general_dilated", v=(1, 4, 3), w=(2, 3, 5))


@REFUSED.entry
def inside_a_while_loop():
    def apply(p, x):
        def turn(state):
            return state[0] - 1, jnp.tanh(state[1] @ p["w"])

        start = (p["turns"], x)
        return jax.lax.while_loop(lambda state: state[0] > 0, turn, start)[1] @ p["v"]

    return _beside(apply, OTHER + "while", w=(4, 4), v=(4, 5), turns=())


@REFUSED.entry
def inside_a_condition():
    def apply(p, x):
        return jax.lax.cond(p["gain"] > 0, lambda h: h @ p["w"], lambda h: h @ -p["w"], x)

    return _beside(apply, OTHER + "cond", gain=())


@REFUSED.entry
def looked_up_along_two_axes():
    def apply(p, x):
        row, column = jnp.argmax(x, axis=1), jnp.argmin(x, axis=1)
        return x + p["w"][row, column][:, None]

    return _beside(apply, OTHER + "gather", w=(4, 4), out=(4, 2))


@REFUSED.entry
def joined_with_another_parameter():
    def apply(p, x):
        return x @ jnp.concatenate([p["w"], p["v"]], axis=1)

    return _beside(apply, OTHER + "concatenate", w=(4, 2), v=(4, 3))


@REFUSED.entry
def carried_by_a_scan():
    def apply(p, x):
        step = lambda w, x_t: (0.5 * w, x_t @ w)  # noqa: E731
        return jax.lax.scan(step, p["w"], x[None])[1][0]

    return _beside(apply, OTHER)


@REFUSED.entry
def in_the_output():
    return Refused(
        lambda p, x: {"y": x @ p["v"], "w": x @ p["w"] + 0 * x[:, :1], "raw": p["w"]},
        weights(v=(4, 2), w=(4, 5)),
        normal(B, 4),
        "w",
        OTHER,
        "w",
    )


@REFUSED.entry
def bias():
    return _beside(lambda p, x: x @ p["w"] + p["b"], r"b \[5\]: add", "b", "b", b=(5,))


@REFUSED.entry
def unused_parameter():
    return _beside(lambda p, x: x @ p["w"], r"idle \[4, 4\]: ", "idle", "idle", idle=(4, 4))


@REFUSED.entry
def unknown_name():
    return _beside(lambda p, x: x @ p["w"], "'v'.*'w'", ["v"], None)


@REFUSED.entry
def glob_without_a_match():
    return _beside(lambda p, x: x @ p["w"], r"'mlp/\*'.*'w'", "mlp/*", None)


@REFUSED.entry
def two_parameters_of_one_name():
    params = {"a/b": normal(4, 5, seed=1), "a": {"b": normal(5, 2, seed=2)}}

    def apply(p, x):
        return jnp.tanh(x @ p["a/b"]) @ p["a"]["b"]

    return Refused(apply, params, normal(B, 4), None, r"several are called \['a/b'\]")


@REFUSED.entry
def layer_beyond_the_last():
    def apply(p, x):
        return jax.lax.scan(lambda h, w: (h @ w, None), x, p["w"])[0] @ p["v"]

    return _beside(apply, r"w\[3\].*w\[2\]", ["w[3]"], None, w=(3, 4, 4), v=(4, 5))


@REFUSED.entry
def no_product_at_all():
    apply = lambda p, x: x * p["w"]  # noqa: E731
    return Refused(apply, weights(w=(4,)), normal(B, 4), None, r"w \[4\]: mul", None)


class _Normalised(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False, name="norm")(nn.Dense(4, name="first")(x))
        return nn.Dense(2, name="out")(jnp.tanh(x))


@REFUSED.entry
def batch_norm_in_training():
    module, x = _Normalised(), normal(B, 4)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]

    def apply(params, x):
        return module.apply({"params": params}, x, mutable="batch_stats")[0]

    return Refused(apply, drawn(shapes), x, None, "(?i)example", None)


@REFUSED.entry
def attention_between_examples():
    def apply(params, x):
        return jax.nn.softmax(x @ x.T) @ x @ params["w"]

    return Refused(apply, weights(w=(4, 3)), normal(B, 4), None, "(?i)example", None)


@REFUSED.entry
def output_without_a_batch():
    def apply(params, x):
        return (x @ params["w"]).mean(0)

    return Refused(apply, weights(w=(4, T)), normal(B, 4), None, "(?i)batch|example", None)


@REFUSED.entry
def examples_in_another_order_inside():
    def apply(params, x):
        return (x[::-1] @ params["w"])[::-1]

    return Refused(apply, weights(w=(4, 3)), normal(B, 4), None, "change places", None)


@jax.custom_jvp
def _rounded_product(w, x):
    return jnp.round(4 * (x @ w)) / 4


@_rounded_product.defjvp
def _rounded_product_jvp(primals, tangents):
    (w, x), (dw, dx) = primals, tangents
    return _rounded_product(w, x), dx @ w + x @ dw


@REFUSED.entry
def derivative_that_is_not_the_products():
    apply = lambda p, x: _rounded_product(p["w"], x)  # noqa: E731
    return Refused(apply, weights(w=(4, 3)), normal(B, 4), None, "custom derivative", None)


@REFUSED.entry
def product_within_shard_map():
    mesh, whole = jax.make_mesh((1,), ("d",)), jax.sharding.PartitionSpec()
    product = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(whole, whole), out_specs=whole)
    apply = lambda p, x: product(x, p["w"]) + x @ p["u"]  # noqa: E731
    message = r"w \[4, 3\]: used inside a shard_map or pmap, .*for whole arrays"
    return Refused(apply, weights(w=(4, 3), u=(4, 3)), normal(B, 4), "w", message, "w")


@REFUSED.entry
def product_of_two_weights_within_pmap():
    def apply(params, x):
        return jax.pmap(lambda x: x @ params["w"] @ params["v"])(x[None])[0] + x @ params["u"]

    message = "used inside a shard_map or pmap, .*for whole arrays"
    return Refused(apply, weights(w=(4, 3), v=(3, 2), u=(4, 2)), normal(B, 4), "w", message, "w")
