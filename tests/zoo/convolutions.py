"""Convolutions: 1-D to 3-D, strides, dilations, paddings, groups, dimension numbers.

A site's rows are the kernel's axes but the output's, in the order in which the leaf has them.
"""

import jax
import jax.numpy as jnp
from jax.lax import conv_general_dilated as convolve

from zoo.network import NETWORKS, B, Network, normal, weights


@NETWORKS.entry
def convolution_1d():
    params = weights(a=(3, 2, 4), bias=(4,), out=(4, 2))

    def apply(params, x):
        numbers = ("NWC", "WIO", "NWC")
        h = convolve(x, params["a"], (1,), "SAME", dimension_numbers=numbers)
        return jnp.tanh(h + params["bias"]).mean(1) @ params["out"]

    return Network(apply, params, normal(B, 6, 2), {"a": (6, 4), "out": (4, 2)})


@NETWORKS.entry
def strided_convolutions_of_images():
    params = weights(a=(3, 3, 2, 4), b=(2, 2, 4, 3), out=(3, 2))

    def apply(params, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        h = jnp.tanh(convolve(x, params["a"], (2, 1), "SAME", dimension_numbers=numbers))
        h = jnp.tanh(convolve(h, params["b"], (1, 2), "VALID", dimension_numbers=numbers))
        return h.mean((1, 2)) @ params["out"]

    sites = {"a": (18, 4), "b": (16, 3), "out": (3, 2)}
    return Network(apply, params, normal(B, 5, 4, 2), sites)


@NETWORKS.entry
def channels_first_with_uneven_padding():
    params = weights(a=(3, 2, 2, 3), out=(3, 2))

    def apply(params, x):
        h = convolve(x, params["a"], (1, 1), ((2, 0), (0, 1)))
        return jnp.tanh(h).mean((2, 3)) @ params["out"]

    return Network(apply, params, normal(B, 2, 4, 4), {"a": (12, 3), "out": (3, 2)})


@NETWORKS.entry
def dilated_convolution():
    params = weights(a=(3, 2, 4))

    def apply(params, x):
        numbers = ("NWC", "WIO", "NWC")
        h = convolve(x, params["a"], (1,), ((4, 0),), rhs_dilation=(2,), dimension_numbers=numbers)
        return h[:, -1]

    return Network(apply, params, normal(B, 6, 2), {"a": (6, 4)})


@NETWORKS.entry
def transposed_convolution():
    params = weights(a=(3, 3, 2, 3), out=(3, 2))

    def apply(params, x):
        h = jax.lax.conv_transpose(x, params["a"], (2, 2), "SAME")
        return jnp.tanh(h).mean((1, 2)) @ params["out"]

    return Network(apply, params, normal(B, 3, 2, 2), {"a": (18, 3), "out": (3, 2)})


@NETWORKS.entry
def flipped_kernel():
    params = weights(a=(3, 2, 4))

    def apply(params, x):
        numbers = ("NWC", "WIO", "NWC")
        return convolve(x, params["a"][::-1], (2,), "SAME", dimension_numbers=numbers)

    return Network(apply, params, normal(B, 5, 2), {"a": (6, 4)})


@NETWORKS.entry
def grouped_convolution():
    params = weights(a=(2, 3, 2, 6), out=(6, 2))

    def apply(params, x):
        h = convolve(
            x,
            params["a"],
            (1, 2),
            ((1, 0), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )
        return jnp.tanh(h).mean((1, 2)) @ params["out"]

    return Network(apply, params, normal(B, 4, 4, 4), {"a": (2, 12, 3), "out": (6, 2)})


@NETWORKS.entry
def depthwise_and_pointwise_convolutions():
    params = weights(depth=(6, 1, 2, 2), point=(4, 6, 1, 1), out=(4, 2))

    def apply(params, x):
        h = convolve(x, params["depth"], (1, 1), "SAME", feature_group_count=3)
        h = convolve(jnp.tanh(h), params["point"], (1, 1), "SAME")
        return jnp.tanh(h).mean((2, 3)) @ params["out"]

    sites = {"depth": (3, 4, 2), "point": (6, 4), "out": (4, 2)}
    return Network(apply, params, normal(B, 3, 4, 3), sites)


@NETWORKS.entry
def convolution_3d():
    params = weights(a=(2, 2, 2, 1, 3), out=(3, 2))

    def apply(params, x):
        numbers = ("NDHWC", "DHWIO", "NDHWC")
        h = convolve(x, params["a"], (1, 2, 1), "VALID", dimension_numbers=numbers)
        return jnp.tanh(h).mean((1, 2, 3)) @ params["out"]

    return Network(apply, params, normal(B, 3, 4, 3, 1), {"a": (8, 3), "out": (3, 2)})


@NETWORKS.entry
def convolution_of_each_example_under_vmap():
    params = weights(a=(3, 2, 2), out=(3, 2))

    def one(params, x):
        h = convolve(x[None], params["a"], (1,), "SAME")[0]
        return params["out"].T @ jnp.tanh(h).mean(1)

    apply = jax.vmap(one, in_axes=(None, 0))
    return Network(apply, params, normal(B, 2, 5), {"a": (4, 3), "out": (3, 2)})


@NETWORKS.entry
def kernel_shared_by_two_convolutions():
    params = weights(a=(2, 2, 2), out=(2, 3))

    def apply(params, x):
        numbers = ("NWC", "WIO", "NWC")
        for dilation in (1, 2):
            x = jnp.tanh(
                convolve(
                    x,
                    params["a"],
                    (1,),
                    ((dilation, 0),),
                    rhs_dilation=(dilation,),
                    dimension_numbers=numbers,
                )
            )
        return x @ params["out"]

    return Network(apply, params, normal(B, 5, 2), {"a": (4, 2), "out": (2, 3)})


@NETWORKS.entry
def patches_and_a_product():
    params = weights(embed=(2, 2, 1, 3), out=(3, 2))

    def apply(params, x):
        patches = x.reshape(-1, 2, 2, 2, 2, 1)
        h = jnp.einsum("bhpwqc,pqco->bhwo", patches, params["embed"])
        return jnp.tanh(h).mean((1, 2)) @ params["out"]

    return Network(apply, params, normal(B, 4, 4, 1), {"embed": (4, 3), "out": (3, 2)})
