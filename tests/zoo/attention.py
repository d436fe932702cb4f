"""Attention and language models, written by hand. Letters: b example, t s positions, h head."""

import jax
import jax.numpy as jnp

from zoo.network import (
    NETWORKS,
    VOCABULARY,
    B,
    Network,
    T,
    layer_norm,
    normal,
    per_position,
    tokens,
    weights,
)

WIDTH, HEADS, HEAD = 4, 2, 3


def _causal(scores):
    length = scores.shape[-1]
    return jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -jnp.inf)


def _heads(x):
    return x.reshape(*x.shape[:2], HEADS, HEAD)


@NETWORKS.entry
def causal_attention():
    shape = (WIDTH, HEADS * HEAD)
    params = weights(q=shape, k=shape, v=shape, o=shape[::-1], out=(WIDTH, 2), gain=(WIDTH,))

    def apply(params, x, product=jnp.matmul):
        q, k, v = (_heads(product(layer_norm(x), params[name])) for name in "qkv")
        pattern = jax.nn.softmax(_causal(jnp.einsum("bthd,bshd->bhts", q, k)))
        mixed = jnp.einsum("bhts,bshd->bthd", pattern, v).reshape(*x.shape[:2], -1)
        x = x + product(mixed, params["o"])
        return product(layer_norm(x) * params["gain"], params["out"])

    sites = {name: shape for name in "qkv"} | {"o": shape[::-1], "out": (WIDTH, 2)}
    return Network(
        apply,
        params,
        normal(B, T, WIDTH),
        sites,
        by_position=lambda params, x: apply(params, x, per_position),
    )


@NETWORKS.entry
def weights_of_each_head_by_einsum():
    shape = (HEADS, WIDTH, HEAD)
    params = weights(q=shape, k=shape, v=shape, o=(HEADS, HEAD, WIDTH))

    def apply(params, x):
        q, k, v = (jnp.einsum("btd,hde->bthe", x, params[name]) for name in "qkv")
        pattern = jax.nn.softmax(_causal(jnp.einsum("bthe,bshe->bhts", q, k)))
        return jnp.einsum("bthe,hed->btd", jnp.einsum("bhts,bshe->bthe", pattern, v), params["o"])

    sites = {name: (WIDTH, HEADS * HEAD) for name in "qkv"} | {"o": (HEADS * HEAD, WIDTH)}
    return Network(apply, params, normal(B, T, WIDTH), sites)


@NETWORKS.entry
def heads_under_vmap():
    params = weights(qk=(HEADS, WIDTH, WIDTH), v=(HEADS, WIDTH, HEAD), o=(HEADS, HEAD, WIDTH))

    def head(x, qk, v, o):
        pattern = jax.nn.softmax(jnp.einsum("btd,bsd->bts", x @ qk, x))
        return pattern @ (x @ v) @ o

    def apply(params, x):
        one = jax.vmap(head, in_axes=(None, 0, 0, 0))
        return one(x, params["qk"], params["v"], params["o"]).sum(0)

    sites = {"qk": (WIDTH, HEADS * WIDTH), "v": (WIDTH, HEADS * HEAD)}
    return Network(apply, params, normal(B, T, WIDTH), sites | {"o": (HEADS, HEAD, WIDTH)})


@NETWORKS.entry
def grouped_query_attention():
    params = weights(q=(WIDTH, 4, HEAD), k=(WIDTH, 2, HEAD), v=(WIDTH, 2, HEAD), o=(4, HEAD, 3))

    def apply(params, x):
        q, k, v = (jnp.einsum("btd,dhe->bthe", x, params[name]) for name in "qkv")
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return jnp.einsum("bthe,hed->btd", mixed, params["o"])

    sites = {"q": (WIDTH, 12), "k": (WIDTH, 6), "v": (WIDTH, 6), "o": (12, 3)}
    return Network(apply, params, normal(B, T, WIDTH), sites)


@NETWORKS.entry
def last_position_of_attention():
    params = weights(qk=(WIDTH, WIDTH), ov=(WIDTH, WIDTH), out=(WIDTH, 2))

    def apply(params, x):
        scores = _causal((x @ params["qk"]) @ jnp.swapaxes(x, 1, 2))
        mixed = jax.nn.softmax(scores) @ x @ params["ov"]
        return mixed[:, -1] @ params["out"]

    sites = {"qk": (WIDTH, WIDTH), "ov": (WIDTH, WIDTH), "out": (WIDTH, 2)}
    return Network(apply, params, normal(B, T, WIDTH), sites)


@NETWORKS.entry
def padded_positions():
    params = weights(qk=(WIDTH, WIDTH), ov=(WIDTH, WIDTH), out=(WIDTH, 2))

    def apply(params, inputs):
        x, real = inputs
        scores = (x @ params["qk"]) @ jnp.swapaxes(x, 1, 2)
        mixed = jax.nn.softmax(jnp.where(real[:, None], scores, -jnp.inf)) @ (x @ params["ov"])
        return jnp.where(real[..., None], mixed, 0.0).sum(1) @ params["out"]

    real = jnp.arange(T) < jnp.array([2, 4, 3])[:, None]
    sites = {"qk": (WIDTH, WIDTH), "ov": (WIDTH, WIDTH), "out": (WIDTH, 2)}
    return Network(apply, params, (normal(B, T, WIDTH), real), sites)


@NETWORKS.entry
def bag_of_tokens():
    params = weights(embedding=(VOCABULARY, WIDTH), out=(WIDTH, 2))

    def apply(params, x):
        return jnp.tanh(params["embedding"][x].mean(1)) @ params["out"]

    sites = {"embedding": (VOCABULARY, WIDTH), "out": (WIDTH, 2)}
    return Network(apply, params, tokens(B, T), sites)


@NETWORKS.entry
def one_token_taken_along_the_second_axis():
    params = weights(table=(WIDTH, VOCABULARY), out=(WIDTH, 2))

    def apply(params, x):
        return jnp.tanh(jnp.take(params["table"], x, axis=1)).T @ params["out"]

    sites = {"table": (VOCABULARY, WIDTH), "out": (WIDTH, 2)}
    return Network(apply, params, tokens(B), sites)


@NETWORKS.entry
def one_hot_tokens():
    params = weights(embedding=(VOCABULARY, WIDTH), out=(WIDTH, 2))

    def apply(params, x):
        return jnp.tanh(jax.nn.one_hot(x, VOCABULARY) @ params["embedding"]) @ params["out"]

    sites = {"embedding": (VOCABULARY, WIDTH), "out": (WIDTH, 2)}
    return Network(apply, params, tokens(B, T), sites)


@NETWORKS.entry
def embedding_multiplied_before_it_is_looked_up():
    """The first use, a product, fixes the view; the look-up then reads by columns."""
    params = weights(embedding=(VOCABULARY, WIDTH))

    def apply(params, inputs):
        guess = jnp.tanh(inputs["x"] @ params["embedding"].T)
        return jnp.concatenate([guess, params["embedding"][inputs["token"]]], axis=-1)

    inputs = {"x": normal(B, WIDTH), "token": tokens(B)}
    return Network(apply, params, inputs, {"embedding": (WIDTH, VOCABULARY)})


@NETWORKS.entry
def tied_embedding_language_model():
    params = weights(embedding=(VOCABULARY, WIDTH), up=(WIDTH, 5), down=(5, WIDTH))

    def network(params, x, product, unembed):
        h = layer_norm(x + product(jax.nn.gelu(product(x, params["up"])), params["down"]))
        return unembed(h)

    def apply(params, x):
        table = params["embedding"]
        return network(params, table[x], jnp.matmul, lambda h: h @ table.T)

    def by_position(params, x):
        table = jnp.broadcast_to(params["embedding"], (*x.shape, VOCABULARY, WIDTH))
        looked_up = jnp.take_along_axis(table, x[..., None, None], axis=2)[:, :, 0]
        unembed = lambda h: per_position(h, jnp.swapaxes(table, 2, 3))  # noqa: E731
        return network(params, looked_up, per_position, unembed)

    sites = {"embedding": (VOCABULARY, WIDTH), "up": (WIDTH, 5), "down": (5, WIDTH)}
    return Network(apply, params, tokens(B, T), sites, by_position=by_position)


@NETWORKS.entry
def positions_by_one_hot_product():
    """A product of constants: its rows don't depend on the example."""
    params = weights(place=(T, WIDTH), out=(WIDTH, 2))

    def apply(params, x):
        h = x + jax.nn.one_hot(jnp.arange(T), T) @ params["place"]
        return jnp.tanh(h) @ params["out"]

    sites = {"place": (T, WIDTH), "out": (WIDTH, 2)}
    return Network(apply, params, normal(B, T, WIDTH), sites)


@NETWORKS.entry
def learned_positions_are_no_site():
    params = weights(embedding=(VOCABULARY, WIDTH), place=(T, WIDTH), mix=(T, T), out=(WIDTH, 2))

    def apply(params, x):
        h = params["embedding"][x] + params["place"]
        return jnp.tanh(jnp.einsum("ts,bsd->btd", params["mix"], h)) @ params["out"]

    sites = {"embedding": (VOCABULARY, WIDTH), "mix": (T, T), "out": (WIDTH, 2)}
    return Network(apply, params, tokens(B, T), sites)
