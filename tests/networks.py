"""Small networks with random parameters, and literal definitions to hold results against.

Letters: B batch, C components, O outputs, d_in / d_out widths of a site.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.components import Factors
from apd_jax.sites import Target
from apd_jax.studies.resid_mlp.network import ResidualMLP
from apd_jax.studies.tms.network import TMS

NAMES = ("tms", "tms_hidden", "mlp")


def normal(seed, *shape):
    """Standard normal float32 array."""
    return jnp.array(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def tms(hidden_layers=0, features=4, hidden=2):
    """A TMS with a bias, drawn so that about half of its outputs are positive."""
    params = {"linear1": {"kernel": normal(0, features, hidden)}}
    params |= {
        f"hidden_{i}": {"kernel": normal(i + 1, hidden, hidden)} for i in range(hidden_layers)
    }
    params["b_final"] = normal(9, features)
    names = ["linear1", *(f"hidden_{i}" for i in range(hidden_layers))]
    return Target.from_flax(
        TMS(features, hidden, hidden_layers),
        {"params": params},
        names,
        inputs=jnp.zeros((2, features)),
    )


def mlp_apply(params, x):
    """Two layers with biases and tanh, as a plain function."""
    hidden = x @ params["first"]["w"] + params["first"]["b"]
    return jnp.tanh(hidden) @ params["second"]["w"] + params["second"]["b"]


def mlp(d_in=3, hidden=5, outputs=2):
    """`tanh(x A + a) B + b`; not a TMS, and narrower at the output."""
    params = {
        "first": {"w": normal(0, d_in, hidden), "b": normal(1, hidden)},
        "second": {"w": normal(2, hidden, outputs), "b": normal(3, outputs)},
    }
    return Target(mlp_apply, params, inputs=jnp.zeros((2, d_in)))


def make(name):
    """The network called `name`, and inputs [7, d] with zeros among them."""
    target = {"tms": tms, "tms_hidden": lambda: tms(2), "mlp": mlp}[name]()
    width = {"tms": 4, "tms_hidden": 4, "mlp": 3}[name]
    x = normal(5, 7, width)
    return target, jnp.where(x > -0.5, x, 0.0)


def components(target, num_components=3, rank=2, seed=0):
    """Components of standard normal factors."""
    found = {}
    for index, (site, weight) in enumerate(target.weights.items()):
        d_in, d_out = weight.shape
        found[site] = Factors.from_uv(
            normal(100 + 2 * index + seed, num_components, d_in, rank),
            normal(101 + 2 * index + seed, num_components, rank, d_out),
        )
    return found


def output(target, weights, x):
    """f(x, θ) with other matrices at the sites."""
    return target.with_weights(weights)(x)


def matrices(components):
    """Every component's matrices `{site: [C, d_in, d_out]}` by a plain product."""
    return {site: factors.U @ factors.V for site, factors in components.items()}


@functools.partial(jax.jit, static_argnames="source")
def literal_attributions(target, components, x, source):
    """`sqrt(mean_o (Σ_l Σ_ij ∂f_o/∂θ_{l,ij} P_{c,l,ij})²)` from the Jacobian over parameters."""
    parts = matrices(components)
    weights = target.weights
    if source == "components":
        weights = {site: part.sum(axis=0) for site, part in parts.items()}
    jacobian = jax.jacrev(lambda theta: output(target, theta, x))(weights)
    derivatives = sum(jnp.einsum("boij,cij->bco", jacobian[site], parts[site]) for site in parts)
    return jnp.sqrt(jnp.mean(derivatives**2, axis=-1))


@jax.jit
def literal_masked(target, components, x, mask):
    """f(x_b, Σ_c s_c(x_b) P_c), one example after another."""
    parts = matrices(components)

    def one(example, row):
        weights = {site: jnp.einsum("c,cij->ij", row, part) for site, part in parts.items()}
        return output(target, weights, example[None])[0]

    return jax.vmap(one)(x, jnp.asarray(mask, jnp.float32))


def resid_mlp(layers, bias=False, activation="relu", features=4, width=6):
    """A residual MLP module and random parameters."""
    module = ResidualMLP(
        features, width, tuple(3 + i for i in range(layers)), activation, bias, bias
    )
    params = {"W_E": normal(0, features, width), "W_U": normal(1, width, features)}
    for layer, neurons in enumerate(module.neurons):
        block = {
            "mlp_in": {"kernel": normal(10 * layer + 2, width, neurons)},
            "mlp_out": {"kernel": normal(10 * layer + 3, neurons, width)},
        }
        if bias:
            block["mlp_in"]["bias"] = normal(10 * layer + 4, neurons)
            block["mlp_out"]["bias"] = normal(10 * layer + 5, width)
        params[f"layers_{layer}"] = block
    return module, params
