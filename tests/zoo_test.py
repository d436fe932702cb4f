"""Every network of the zoo by every route, against `jax.jvp` along dense vectors and plain loops.

Letters: B examples, T positions, C components, m rank.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import NETWORKS, oracle
from zoo.cases import (
    SKETCH,
    C,
    assert_close,
    case,
    derivatives,
    every_network,
    exact,
    grouped,
    networks,
    random_mask,
    scores_by_mode,
    scores_of,
    target_of,
    vectors_of,
)
from zoo.network import B

import apd_jax
from apd_jax import sites
from apd_jax.attribution import metrics
from apd_jax.components import Factors


@every_network
def test_examples_of_the_zoo_are_independent(name):
    network, *_, run = case(name)
    rows = [run(network.params, b) for b in range(B)]
    rows = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)
    assert_close(jax.jit(network.apply_fn)(network.params, network.inputs), rows, network.tolerance)


@every_network
def test_names_and_shapes_of_sites(name):
    network = NETWORKS[name]()
    sites = target_of(network, network.select).sites
    assert {site: found.shape for site, found in sites.items()} == network.sites


@every_network
def test_weights_written_back_are_the_parameters(name):
    network, target, *_ = case(name)
    whole = {}
    for site, weight in target.weights.items():
        width, stack = weight.shape[-1], weight.shape[:-2]
        identity = np.broadcast_to(np.eye(width, dtype=np.float32), (1, *stack, width, width))
        whole[site] = Factors.from_uv(weight[None], identity)
    vectors = vectors_of(target, whole)
    written = oracle.replaced(network, jax.tree.map(lambda leaf: leaf[0], vectors))
    jax.tree.map(np.testing.assert_array_equal, written, network.params)


# Leaves [C, ...] from the matrices of their sites [C, (G), d_in, d_out].
BY_HAND = {
    "weight_on_the_left": lambda p: {"a": jnp.swapaxes(p["a"], 1, 2)},
    "equinox_perceptron": lambda p: {"layers/1/weight": jnp.swapaxes(p["layers/1/weight"], 1, 2)},
    "one_token_taken_along_the_second_axis": lambda p: {"table": jnp.swapaxes(p["table"], 1, 2)},
    "scan_over_layers": lambda p: {
        "layers/w": jnp.stack([p[f"layers/w[{i}]"] for i in range(3)], axis=1),
        "layers/v": jnp.stack([p[f"layers/v[{i}]"] for i in range(3)], axis=1),
    },
    "one_layer_of_a_scan_by_name": lambda p: {
        "layers/w": jnp.zeros((C, 3, 4, 5)).at[:, 1].set(p["layers/w[1]"])
    },
    "blocks_on_the_diagonal": lambda p: p,
    "linen_dense_general": lambda p: {
        "split/kernel": p["split/kernel"].reshape(C, 4, 2, 3),
        "merge/kernel": p["merge/kernel"].reshape(C, 2, 3, 2),
    },
    "mixed_axes_of_a_larger_weight": lambda p: {
        "w": p["w"].reshape(C, 2, 4, 3, 2).transpose(0, 1, 3, 2, 4)
    },
    "channels_first_with_uneven_padding": lambda p: {
        "a": jnp.swapaxes(p["a"], 1, 2).reshape(C, 3, 2, 2, 3)
    },
    "grouped_convolution": lambda p: {
        "a": p["a"].reshape(C, 2, 2, 3, 2, 3).transpose(0, 2, 3, 4, 1, 5).reshape(C, 2, 3, 2, 6)
    },
}


@networks(BY_HAND)
def test_vectors_by_hand(name):
    network, _, components, vectors, _ = case(name)
    expected = BY_HAND[name]({site: pair.U @ pair.V for site, pair in components.items()})
    names = jax.tree.leaves(oracle.names(network.params))
    for leaf, vector in zip(names, jax.tree.leaves(vectors), strict=True):
        if leaf in expected:
            np.testing.assert_allclose(vector, expected[leaf], rtol=1e-5, atol=1e-5)
        elif leaf not in network.sites:
            np.testing.assert_array_equal(vector, jnp.zeros_like(vector))


@every_network
@pytest.mark.parametrize("mode", ["forward", "reverse", "literal"])
def test_attributions(name, mode):
    assert_close(scores_by_mode(name)[mode], exact(name), case(name).network.tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["list_of_layers", "mixture_of_experts", "tied_embedding_language_model"]
)
def test_attributions_by_the_mode_that_is_chosen(name):
    """It is one of those above, so a few networks do."""
    network, target, components, *_ = case(name)
    scores = scores_of(target, components, network.inputs, mode="auto")
    assert_close(scores, exact(name), network.tolerance)


@every_network
def test_attributions_by_a_sketch(name):
    """Along the random directions that the sketch draws, an example from its own key."""
    along = derivatives(name)  # [C, B, O]
    outputs = jnp.zeros((B, 1, along.shape[-1]))
    count, key = SKETCH["num_probes"], SKETCH["key"]
    drawn = jax.vmap(lambda key, row: metrics.probes("rms", key, row, count)[:, 0])
    probes = drawn(jax.random.split(key, B), outputs)
    expected = np.sqrt(np.sum(np.einsum("bno,cbo->nbc", probes, along) ** 2, axis=0))
    assert_close(scores_by_mode(name)["sketch"], expected, case(name).network.tolerance)


@pytest.mark.parametrize(
    "name", ["list_of_layers", "tied_embedding_language_model", "grouped_convolution"]
)
def test_sketch_is_right_on_average(name):
    network, target, components, *_ = case(name)

    @jax.jit
    def squares(key):
        options = {"mode": "sketch", "num_probes": 1, "key": key}
        scores = apd_jax.gradient_attributions(target, components, network.inputs, **options)
        return scores**2

    probes = np.asarray(jax.lax.map(squares, jax.random.split(jax.random.key(0), 2000)))
    error = probes.std(0, ddof=1) / np.sqrt(len(probes))
    assert error.min() > 0
    difference = probes.mean(0) - np.asarray(exact(name)) ** 2
    np.testing.assert_array_less(np.abs(difference), 3 * error)


@every_network
def test_all_components_are_the_composed_network(name):
    network, target, components, vectors, run = case(name)
    summed = oracle.replaced(network, jax.tree.map(lambda leaf: leaf.sum(0), vectors))
    rows = [run(summed, b) for b in range(B)]
    expected = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)
    composed = apd_jax.composed_apply(target, components, network.inputs)
    assert_close(composed, expected, network.tolerance)
    masked = apd_jax.masked_apply(target, components, network.inputs, jnp.ones((B, C), bool))
    assert_close(masked, expected, network.tolerance)


@every_network
def test_random_masks(name):
    network, target, components, vectors, run = case(name)
    mask = random_mask(B, C)
    expected = oracle.masked(network, vectors, mask, run)
    masked = apd_jax.masked_apply(target, components, network.inputs, mask)
    assert_close(masked, expected, network.tolerance)
    if sites.batched(target, network.inputs):
        assert_close(grouped(target, components, network.inputs, mask), expected, network.tolerance)


@networks(
    (
        "strided_convolutions_of_images",
        "scan_over_layers",
        "fused_output_split",
        "tied_embedding_language_model",
    )
)
def test_a_share_of_the_remainder(name):
    """What is missed, `θ* − Σ P_c`, formed as a dense vector."""
    network, target, components, vectors, run = case(name)
    weights = np.random.default_rng(0).random((B, C + 1)).astype(np.float32)

    def dense(m):
        def leaf(own, parts):
            return np.tensordot(m[:C], parts, 1) + m[C] * (np.asarray(own) - parts.sum(axis=0))

        return jax.tree.map(leaf, network.params, vectors)

    rows = [run(oracle.replaced(network, dense(m)), b) for b, m in enumerate(weights)]
    expected = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)
    masked = apd_jax.masked_apply(target, components, network.inputs, weights[:, :C], weights[:, C])
    assert_close(masked, expected, network.tolerance)


with_positions = networks(
    (
        "positions",
        "positions_merged_with_examples",
        "causal_attention",
        "fused_output_split",
        "tied_embedding_language_model",
    )
)


@with_positions
@pytest.mark.slow
def test_masks_of_every_position(name):
    network, target, components, vectors, _ = case(name)
    mask = random_mask(*network.inputs.shape[:2], C)
    expected = oracle.masked_by_position(network, vectors, mask)
    masked = apd_jax.masked_apply(target, components, network.inputs, mask)
    assert_close(masked, expected, network.tolerance)
    if sites.batched(target, network.inputs):
        assert_close(grouped(target, components, network.inputs, mask), expected, network.tolerance)


@with_positions
def test_attributions_of_every_position(name):
    network, target, components, vectors, _ = case(name)
    expected = oracle.attributions_by_position(network, vectors)
    scores = scores_of(target, components, network.inputs, per_position=True)
    assert_close(scores, expected, network.tolerance)
