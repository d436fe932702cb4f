"""Flax Linen modules. Letters: B examples, T positions."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.network import NETWORKS, VOCABULARY, B, Network, T, drawn, normal, tokens


def _network(module, inputs, sites, **fixed):
    """A module with parameters drawn anew; all collections but `params` are fixed."""
    init = functools.partial(module.init, **fixed)
    params = drawn(jax.eval_shape(init, jax.random.key(0), inputs)["params"])
    apply = lambda p, x: module.apply({"params": p}, x, **fixed)  # noqa: E731
    return Network(apply, params, inputs, sites)


@NETWORKS.entry
def linen_bare_dense():
    return _network(nn.Dense(3), normal(B, 4), {"kernel": (4, 3)})


class _Perceptron(nn.Module):
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(dtype=self.dtype)(nn.Dense(5, dtype=self.dtype)(x))
        return nn.Dense(2, dtype=self.dtype)(nn.gelu(x)).astype(jnp.float32)


_PERCEPTRON = {"Dense_0/kernel": (4, 5), "Dense_1/kernel": (5, 2)}


@NETWORKS.entry
def linen_perceptron_with_layer_norm():
    return _network(_Perceptron(), normal(B, 4), _PERCEPTRON)


@NETWORKS.entry
def linen_bfloat16_compute():
    network = _network(_Perceptron(jnp.bfloat16), normal(B, 4), _PERCEPTRON)
    return Network(network.apply_fn, network.params, network.inputs, network.sites, tolerance=3e-2)


class _Classifier(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), strides=(2, 1))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.avg_pool(nn.Conv(4, (2, 2), feature_group_count=2, padding="VALID")(x), (1, 2))
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(2)(x)


@NETWORKS.entry
def linen_convolutions_with_batch_norm_in_evaluation():
    module, x = _Classifier(), normal(B, 5, 4, 2)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    stats = {"BatchNorm_0": {"mean": normal(4), "var": 1 + normal(4, seed=1) ** 2}}

    def apply(params, x):
        return module.apply({"params": params, "batch_stats": stats}, x, train=False)

    sites = {"Conv_0/kernel": (18, 4), "Conv_1/kernel": (2, 8, 2), "Dense_0/kernel": (16, 2)}
    return Network(apply, drawn(variables["params"]), x, sites)


class _General(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.DenseGeneral((2, 3), name="split")(x))
        x = jnp.tanh(nn.DenseGeneral(3, axis=-1, batch_dims=(), name="each")(x))
        return nn.DenseGeneral(2, axis=(-2, -1), name="merge")(x)


@NETWORKS.entry
def linen_dense_general():
    sites = {"split/kernel": (4, 6), "each/kernel": (3, 3), "merge/kernel": (6, 2)}
    return _network(_General(), normal(B, T, 4), sites)


class _Einsum(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Einsum((4, 2, 3), "btd,dhe->bthe")(x)
        return nn.Einsum((2, 3, 4), "bthe,hed->btd", use_bias=False)(jnp.tanh(h))


@NETWORKS.entry
def linen_einsum():
    sites = {"Einsum_0/kernel": (4, 6), "Einsum_1/kernel": (6, 4)}
    return _network(_Einsum(), normal(B, T, 4), sites)


class _Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(VOCABULARY, 4)
        h = embed(x)
        normed = nn.LayerNorm()(h)
        h = h + nn.MultiHeadDotProductAttention(2)(normed, mask=nn.make_causal_mask(x))
        h = h + nn.Dense(4, name="down")(nn.gelu(nn.Dense(5, name="up")(nn.LayerNorm()(h))))
        return embed.attend(nn.LayerNorm()(h))


@NETWORKS.entry
def linen_transformer_with_tied_embedding():
    attention = "MultiHeadDotProductAttention_0"
    sites = {"Embed_0/embedding": (VOCABULARY, 4), "up/kernel": (4, 5), "down/kernel": (5, 4)}
    sites |= {f"{attention}/{name}/kernel": (4, 4) for name in ("query", "key", "value", "out")}
    return _network(_Transformer(), tokens(B, T), sites)


class _Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(4, name="down")(jnp.tanh(nn.Dense(5, name="up")(x))), None


class _Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(_Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return nn.Dense(2, name="out")(layers(name="layers")(x, None)[0])


@NETWORKS.entry
def linen_scan_of_remat_over_layers():
    sites = {f"layers/up/kernel[{i}]": (4, 5) for i in range(3)}
    sites |= {f"layers/down/kernel[{i}]": (5, 4) for i in range(3)}
    return _network(_Scanned(), normal(B, 4), sites | {"out/kernel": (4, 2)})


class _Ensemble(nn.Module):
    @nn.compact
    def __call__(self, x):
        members = nn.vmap(
            _Perceptron,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=3,
        )
        return members(name="members")(x).mean(0)


@NETWORKS.entry
def linen_ensemble_under_vmap():
    sites = {"members/Dense_0/kernel": (4, 15), "members/Dense_1/kernel": (3, 5, 2)}
    return _network(_Ensemble(), normal(B, 4), sites)


class _Siamese(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(4, name="shared")
        return nn.Dense(2, name="out")(jnp.tanh(shared(x[:, 0])) * jnp.tanh(shared(x[:, 1])))


@NETWORKS.entry
def linen_module_called_twice():
    sites = {"shared/kernel": (3, 4), "out/kernel": (4, 2)}
    return _network(_Siamese(), normal(B, 2, 3), sites)


@NETWORKS.entry
def linen_convolution_with_weights_of_each_place():
    return _network(nn.ConvLocal(2, (2,), padding="VALID"), normal(B, 4, 2), {"kernel": (3, 4, 2)})


@NETWORKS.entry
def linen_transposed_convolution():
    return _network(nn.ConvTranspose(3, (3,), strides=(2,)), normal(B, 3, 2), {"kernel": (6, 3)})
