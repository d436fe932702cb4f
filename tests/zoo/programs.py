"""Products inside of other programs: jit, remat, custom derivatives, scans; fused weights."""

import jax
import jax.numpy as jnp

from zoo.network import NETWORKS, B, Network, T, layer_norm, normal, per_position, weights


@NETWORKS.entry
def jitted_inner_functions():
    params = weights(a=(4, 5), b=(5, 2))

    @jax.jit
    def inner(w, x):
        return jax.jit(jnp.tanh)(x @ w)

    apply = jax.jit(lambda p, x: inner(p["b"], inner(p["a"], x)))
    return Network(apply, params, normal(B, 4), {"a": (4, 5), "b": (5, 2)})


@jax.custom_jvp
def _cube(x):
    return x**3


@_cube.defjvp
def _cube_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    return _cube(x), 2 * x**2 * t  # not the true derivative: the network's own rule counts


@NETWORKS.entry
def custom_jvp_activation():
    params = weights(a=(4, 5), b=(5, 5), c=(5, 2))
    apply = lambda p, x: jax.nn.relu(_cube(x @ p["a"]) @ p["b"]) @ p["c"]  # noqa: E731
    return Network(apply, params, normal(B, 4), {"a": (4, 5), "b": (5, 5), "c": (5, 2)})


@jax.custom_jvp
def _linear_with_a_rule(w, x):
    return x @ w


@_linear_with_a_rule.defjvp
def _linear_with_a_rule_jvp(primals, tangents):
    (w, x), (dw, dx) = primals, tangents
    return x @ w, dx @ w + x @ dw


@NETWORKS.entry
def custom_jvp_around_a_product():
    params = weights(a=(4, 5), b=(5, 2))

    def apply(params, x):
        return _linear_with_a_rule(params["b"], jnp.tanh(_linear_with_a_rule(params["a"], x)))

    return Network(apply, params, normal(B, 4), {"a": (4, 5), "b": (5, 2)})


@NETWORKS.entry
def remat():
    params = weights(a=(4, 5), b=(5, 2))

    @jax.checkpoint
    def block(w, x):
        return jnp.tanh(x @ w)

    apply = lambda p, x: block(p["b"], block(p["a"], x))  # noqa: E731
    return Network(apply, params, normal(B, 4), {"a": (4, 5), "b": (5, 2)})


def _residual_layers(wrap):
    params = {"layers": weights(w=(3, 4, 5), v=(3, 5, 4), b=(3, 5)), "out": normal(4, 2)}

    @wrap
    def layer(x, leaves):
        return x + jnp.tanh(x @ leaves["w"] + leaves["b"]) @ leaves["v"], None

    def apply(params, x):
        return jax.lax.scan(layer, x, params["layers"])[0] @ params["out"]

    sites = {f"layers/w[{i}]": (4, 5) for i in range(3)}
    sites |= {f"layers/v[{i}]": (5, 4) for i in range(3)}
    return Network(apply, params, normal(B, 4), sites | {"out": (4, 2)})


@NETWORKS.entry
def scan_over_layers():
    return _residual_layers(lambda layer: layer)


@NETWORKS.entry
def scan_over_layers_with_remat():
    return _residual_layers(jax.checkpoint)


@NETWORKS.entry
def scan_over_layers_backwards():
    params = {"w": normal(3, 4, 4, seed=1), "out": normal(4, 2)}

    def apply(params, x):
        step = lambda h, w: (jnp.tanh(h @ w), None)  # noqa: E731
        return jax.lax.scan(step, x, params["w"], reverse=True)[0] @ params["out"]

    sites = {f"w[{i}]": (4, 4) for i in range(3)} | {"out": (4, 2)}
    return Network(apply, params, normal(B, 4), sites)


@NETWORKS.entry
def one_layer_of_a_scan_by_name():
    network = scan_over_layers()
    sites = {"layers/w[1]": (4, 5), "out": (4, 2)}
    return Network(network.apply_fn, network.params, network.inputs, sites, ["layers/w[1]", "out"])


@NETWORKS.entry
def stacked_layers_in_a_python_loop():
    params = {"w": normal(3, 4, 4, seed=1), "out": normal(4, 2)}

    def apply(params, x):
        for layer in range(3):
            x = jnp.tanh(x @ params["w"][layer])
        return x @ params["out"]

    sites = {f"w[{i}]": (4, 4) for i in range(3)} | {"out": (4, 2)}
    return Network(apply, params, normal(B, 4), sites)


@NETWORKS.entry
def scan_over_time():
    params = weights(w_in=(3, 5), w_h=(5, 5), out=(5, 2))

    def apply(params, x):
        def step(h, x_t):
            h = jnp.tanh(x_t @ params["w_in"] + h @ params["w_h"])
            return h, h @ params["out"]

        zeros = jnp.zeros((x.shape[0], 5))
        return jnp.swapaxes(jax.lax.scan(step, zeros, jnp.swapaxes(x, 0, 1))[1], 0, 1)

    sites = {"w_in": (3, 5), "w_h": (5, 5), "out": (5, 2)}
    return Network(apply, params, normal(B, T, 3), sites)


@NETWORKS.entry
def scan_over_time_inside_scan_over_layers():
    params = {"rnn": weights(w=(2, 4, 4), h=(2, 4, 4)), "out": normal(4, 2)}

    def apply(params, x):
        def layer(xs, leaves):
            def step(h, x_t):
                h = jnp.tanh(x_t @ leaves["w"] + h @ leaves["h"])
                return h, h

            return jax.lax.scan(step, jnp.zeros_like(xs[0]), xs)[1], None

        xs = jax.lax.scan(layer, jnp.swapaxes(x, 0, 1), params["rnn"])[0]
        return xs[-1] @ params["out"]

    sites = {f"rnn/{name}[{i}]": (4, 4) for name in ("w", "h") for i in range(2)}
    return Network(apply, params, normal(B, T, 4), sites | {"out": (4, 2)})


@NETWORKS.entry
def deep_transition_with_repeated_weight():
    params = weights(w=(4, 4), out=(4, 2))

    def apply(params, x):
        turn = lambda _, h: h + jnp.tanh(h @ params["w"])  # noqa: E731
        return jax.lax.fori_loop(0, 3, turn, x) @ params["out"]

    return Network(apply, params, normal(B, 4), {"w": (4, 4), "out": (4, 2)})


@NETWORKS.entry
def chosen_by_an_index_of_the_loop():
    params = weights(w=(2, 4, 5), out=(5, 2))

    def apply(params, x):
        turn = lambda i, h: h + jnp.tanh(x @ params["w"][i])  # noqa: E731
        return jax.lax.fori_loop(0, 2, turn, jnp.zeros((len(x), 5))) @ params["out"]

    sites = {"w[0]": (4, 5), "w[1]": (4, 5), "out": (5, 2)}
    return Network(apply, params, normal(B, 4), sites)


@NETWORKS.entry
def one_expert_for_each_example():
    """Looking up the expert is the linear use: a row of the site is a whole matrix."""
    params = weights(w=(2, 4, 5), out=(5, 2))

    def apply(params, x):
        expert = jnp.argmax(x[:, :2], axis=1)
        return jnp.tanh(jnp.einsum("bd,bdf->bf", x, params["w"][expert])) @ params["out"]

    return Network(apply, params, normal(B, 4), {"w": (2, 20), "out": (5, 2)})


@NETWORKS.entry
def mixture_of_experts():
    params = weights(router=(4, 3), up=(3, 4, 5), down=(3, 5, 2))

    def apply(params, x):
        gates = jax.nn.softmax(x @ params["router"])
        h = jax.nn.relu(jnp.einsum("bd,edf->bef", x, params["up"]))
        return jnp.einsum("beo,be->bo", jnp.einsum("bef,efo->beo", h, params["down"]), gates)

    sites = {"router": (4, 3), "up": (4, 15), "down": (3, 5, 2)}
    return Network(apply, params, normal(B, 4), sites)


@NETWORKS.entry
def experts_under_vmap():
    params = weights(up=(3, 4, 5), down=(3, 5, 2))

    def expert(up, down, x):
        return jnp.tanh(x @ up) @ down

    def apply(params, x):
        experts = jax.vmap(expert, in_axes=(0, 0, None))
        return experts(params["up"], params["down"], x).sum(0)

    return Network(apply, params, normal(B, 4), {"up": (4, 15), "down": (3, 5, 2)})


@NETWORKS.entry
def blocks_on_the_diagonal():
    params = weights(w=(3, 2, 4), out=(3, 4, 2))

    def apply(params, x):
        h = jnp.tanh(jnp.einsum("bgi,gio->bgo", x.reshape(-1, 3, 2), params["w"]))
        return jnp.einsum("bgi,gio->bgo", h, params["out"]).reshape(x.shape[0], 6)

    return Network(apply, params, normal(B, 6), {"w": (3, 2, 4), "out": (3, 4, 2)})


def _attention(q, k, v):
    return jax.nn.softmax(jnp.einsum("btd,bsd->bts", q, k)) @ v


def _attention_by_position(weights_of):
    def apply(params, x):
        q, k, v = (per_position(x, w) for w in weights_of(params["qkv"]))
        return per_position(layer_norm(x + _attention(q, k, v)), params["out"])

    return apply


def _fused(split, shape=(4, 12), sites=None, weights_of=None):
    params = weights(qkv=shape, out=(4, 3))

    def apply(params, x):
        return layer_norm(x + _attention(*split(x, params["qkv"]))) @ params["out"]

    sites = {"qkv": (4, 12)} if sites is None else sites
    by_position = weights_of and _attention_by_position(weights_of)
    return Network(apply, params, normal(B, T, 4), sites | {"out": (4, 3)}, by_position=by_position)


@NETWORKS.entry
def fused_output_split():
    return _fused(
        lambda x, w: jnp.split(x @ w, 3, axis=-1),
        weights_of=lambda w: jnp.split(w, 3, axis=-1),
    )


@NETWORKS.entry
def fused_weight_sliced():
    return _fused(lambda x, w: (x @ w[:, :4], x @ w[:, 4:8], x @ w[:, 8:]))


@NETWORKS.entry
def fused_weight_split():
    return _fused(lambda x, w: [x @ part for part in jnp.split(w, 3, axis=1)])


@NETWORKS.entry
def fused_weight_reshaped():
    def split(x, w):
        return jnp.moveaxis(jnp.einsum("btd,dsf->btsf", x, w.reshape(4, 3, 4)), 2, 0)

    return _fused(split)


@NETWORKS.entry
def fused_weight_indexed():
    sites = {f"qkv[{i}]": (4, 4) for i in range(3)}
    return _fused(lambda x, w: (x @ w[0], x @ w[1], x @ w[2]), (3, 4, 4), sites)


@NETWORKS.entry
def fused_weight_unpacked():
    def split(x, w):
        q, k, v = w
        return x @ q, x @ k, x @ v

    return _fused(split, (3, 4, 4), {f"qkv[{i}]": (4, 4) for i in range(3)})
