"""Networks of the zoo with components, and what several tests ask of them.

Letters: B examples, C components, m rank.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import apd_jax
from apd_jax import sites
from apd_jax.components import Factors
from apd_jax.masked import forward
from zoo import NETWORKS, Network, oracle
from zoo.network import normal

C, RANK = 3, 2
# One of every kind of use; and the few of the fast tests, since all take minutes to compile.
KINDS = (
    "list_of_layers",
    "square_matrix_and_its_transpose",
    "vmap_over_examples",
    "dictionary_outputs",
    "scan_over_layers_with_remat",
    "one_layer_of_a_scan_by_name",
    "mixture_of_experts",
    "tied_embedding_language_model",
    "embedding_multiplied_before_it_is_looked_up",
    "grouped_convolution",
    "linen_perceptron_with_layer_norm",
)
QUICK = (
    "list_of_layers",
    "scan_over_layers_with_remat",
    "mixture_of_experts",
    "tied_embedding_language_model",
    "grouped_convolution",
)


def networks(names):
    """Parametrised over these; all but a few are slow."""
    slow = pytest.mark.slow
    marked = [pytest.param(name, marks=() if name in QUICK else slow) for name in names]
    return pytest.mark.parametrize("name", marked)


every_network = networks(NETWORKS)


class Case(NamedTuple):
    """A network with components, and what the tests of it share."""

    network: Network
    target: apd_jax.Target
    components: dict[str, Factors]
    vectors: object
    run: object


def target_of(entry, select):
    """The target of an entry of the zoo."""
    return apd_jax.Target(entry.apply_fn, entry.params, select, inputs=entry.inputs)


def components_of(target):
    """Components of normal factors."""
    components = {}
    for index, (site, found) in enumerate(target.sites.items()):
        *stack, d_in, d_out = found.shape
        components[site] = Factors.from_uv(
            normal(C, *stack, d_in, RANK, seed=2 * index),
            normal(C, *stack, RANK, d_out, seed=2 * index + 1),
        )
    return components


def vectors_of(target, components):
    """Components as vectors over the parameters: NumPy's, whose sums have nothing to compile."""
    return jax.tree.map(np.asarray, jax.jit(apd_jax.in_parameter_space)(target, components))


@functools.lru_cache
def case(name):
    """The network called `name` with components."""
    network = NETWORKS[name]()
    target = target_of(network, network.select)
    components = components_of(target)
    vectors = vectors_of(target, components)
    return Case(network, target, components, vectors, oracle.one_example(network))


@functools.lru_cache
def derivatives(name):
    """Derivatives of the outputs along dense vectors, [C, B, outputs]."""
    network, _, _, vectors, _ = case(name)
    return np.asarray(oracle.derivatives(network, vectors))


def exact(name):
    """Attributions from dense vectors, [B, C]: roots of the mean square over the outputs."""
    return np.sqrt(np.mean(np.square(derivatives(name)), axis=-1)).T


SKETCH = {"num_probes": 2, "key": jax.random.key(5)}


def scores_of(target, components, x, **options):
    """Attributions, compiled as one program."""
    function = functools.partial(apd_jax.gradient_attributions, **options)
    return jax.jit(function)(target, components, x)


@functools.lru_cache
def scores_by_mode(name):
    """Attributions of a network by every mode, {mode: [B, C]}; one program compiles faster."""
    network, target, components, *_ = case(name)

    @jax.jit
    def run(target, components, x):
        found = functools.partial(apd_jax.gradient_attributions, target, components, x)
        exact = {mode: found(mode=mode) for mode in ("forward", "reverse", "literal")}
        return exact | {"sketch": found(mode="sketch", **SKETCH)}

    return run(target, components, network.inputs)


def grouped(target, components, x, mask):
    """Outputs of the masked pass that computes the active pairs alone."""
    pairs = np.nonzero(np.asarray(mask).reshape(-1, mask.shape[-1]))
    pairs = tuple(places.astype(np.int32) for places in pairs)

    @jax.jit
    def run(components):
        operation = forward.masked_pairs(components, pairs, mask.shape[:-1])
        return sites.run(target, x, operation, positions=mask.ndim == 3)[0]

    return run(components)


def assert_close(actual, expected, tolerance):
    """Equal trees, up to a part of the largest number."""
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), actual, expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = float(np.max(np.abs(b)))
        assert scale > 0
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


def random_mask(*shape):
    """Half of the components, at random; nothing for the first example."""
    mask = np.random.default_rng(0).random(shape) < 0.5
    mask[0] = False
    return jnp.asarray(mask)
