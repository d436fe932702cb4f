"""What can't be decomposed is refused with the reason, and all else is let pass.

Letters: B examples, T positions, C components.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from zoo import NETWORKS, REFUSED
from zoo.cases import C, assert_close, case, components_of, scores_of, target_of
from zoo.network import B, normal, weights

import apd_jax
from apd_jax.errors import UserError


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_checks_before_training_let_it_pass(name):
    apd_jax.check_target(case(name).target, case(name).network.inputs)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_and_listed_with_the_reason(name):
    entry = REFUSED[name]()
    with pytest.raises(UserError, match=entry.message):
        apd_jax.check_target(target_of(entry, entry.select), entry.inputs)
    if entry.leaf is not None:  # else the reason is about no parameter
        sites = target_of(entry, None).sites
        assert entry.leaf not in sites
        left = str(sites).partition("left as they are")[2]
        assert re.search(entry.message, left), left


def test_positions_that_are_not_those_of_the_outputs_are_refused():
    params = weights(w=(4, 5), out=(5, 3))

    def apply(params, x):
        between = jnp.tanh((x[:, 1:] - x[:, :-1]) @ params["w"])
        return jnp.concatenate([jnp.zeros((len(x), 1, 3)), between @ params["out"]], axis=1)

    x = normal(B, 4, 4)
    target = apd_jax.Target(apply, params, inputs=x)
    with pytest.raises(UserError, match="'out'.*positions|'w'.*positions"):
        apd_jax.masked_apply(target, components_of(target), x, jnp.ones((B, 4, C), bool))


@jax.custom_vjp
def _tanh(x):
    return jnp.tanh(x)


_tanh.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g / jnp.cosh(x) ** 2,))


def test_custom_vjp_is_pulled_back():
    params = weights(a=(4, 5), b=(5, 2))
    x = normal(B, 4)
    target = apd_jax.Target(lambda p, x: _tanh(x @ p["a"]) @ p["b"], params, inputs=x)
    twin = apd_jax.Target(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, inputs=x)
    components = components_of(target)
    apd_jax.check_target(target, x)
    expected = scores_of(twin, components, x)
    for mode in ("auto", "reverse"):
        assert_close(scores_of(target, components, x, mode=mode), expected, 1e-4)
    for mode in ("forward", "literal"):
        with pytest.raises(UserError, match="custom_vjp.*'reverse'"):
            apd_jax.gradient_attributions(target, components, x, mode=mode)
