"""What training needs of the zoo: gradients with respect to the factors, and other linearisations.

Letters: B examples, C components.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from zoo import oracle
from zoo.cases import (
    KINDS,
    C,
    assert_close,
    case,
    grouped,
    random_mask,
    scores_of,
)
from zoo.network import B

import apd_jax
from apd_jax import sites

pytestmark = pytest.mark.slow
some_networks = pytest.mark.parametrize("name", KINDS)


def _squares(tree):
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))


@some_networks
def test_gradients_of_masked_outputs_and_attributions(name):
    network, target, components, _, run = case(name)
    mask = random_mask(B, C)
    known = sites.batched(target, network.inputs)

    def fast(components):
        outputs = apd_jax.masked_apply(target, components, network.inputs, mask)
        pairs = grouped(target, components, network.inputs, mask) if known else outputs
        scores = apd_jax.gradient_attributions(target, components, network.inputs)
        return _squares(outputs) + 2 * _squares(pairs) + _squares(scores)

    def slow(components):
        vectors = apd_jax.in_parameter_space(target, components)
        outputs = oracle.masked(network, vectors, mask, run)
        return 3 * _squares(outputs) + _squares(oracle.attributions(network, vectors))

    found, expected = (jax.jit(jax.grad(function))(components) for function in (fast, slow))
    assert_close(found, expected, 10 * network.tolerance)


@some_networks
def test_attributions_at_the_component_model(name):
    network, target, components, vectors, _ = case(name)
    summed = oracle.replaced(network, jax.tree.map(lambda leaf: leaf.sum(0), vectors))
    there = dataclasses.replace(network, params=summed)
    scores = scores_of(target, components, network.inputs, source="components")
    assert_close(scores, oracle.attributions(there, vectors), network.tolerance)


@some_networks
def test_ablation(name):
    network, target, components, vectors, _ = case(name)
    apply = jax.jit(network.apply_fn)

    def without(c):
        rest = jax.tree.map(lambda leaf: leaf.sum(0) - (0 if c is None else leaf[c]), vectors)
        return apply(oracle.replaced(network, rest), network.inputs)

    full = without(None)
    change = [jax.tree.map(jnp.subtract, without(c), full) for c in range(C)]
    expected = jnp.stack([oracle.rms(outputs, batch_axis=0) ** 2 for outputs in change], axis=1)
    scores = apd_jax.ablation_attributions(target, components, network.inputs)
    assert_close(scores, expected, 10 * network.tolerance)


@some_networks
def test_a_network_alone_and_beside_another(name):
    """Parameters are leaves of the target: networks side by side are one with stacked leaves."""
    network, target, components, *_ = case(name)
    doubled = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (target, components))
    attributions = lambda t, c: apd_jax.gradient_attributions(t, c, network.inputs)  # noqa: E731
    scores = jax.jit(jax.vmap(attributions))(*doubled)
    alone = scores_of(target, components, network.inputs)
    assert_close(scores, jnp.stack([alone, alone]), network.tolerance)
