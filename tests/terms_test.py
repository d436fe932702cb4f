"""Terms of one site each: scored by one pull back, and columns without an identity matrix.

Letters: B examples, T positions, q terms of a site.
"""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest
from zoo import NETWORKS
from zoo.cases import KINDS, assert_close, case

from apd_jax import sites
from apd_jax.attribution import METHODS, Options, attribute_terms
from apd_jax.evaluation import baselines
from apd_jax.evaluation.evidence import equal_rank
from apd_jax.evaluation.evidence.parts import Parts, run
from apd_jax.programs.counts import operations

FAST = ("mixture_of_experts", "tied_embedding_language_model")


def parametrised(names):
    """Parametrised over these; all but two are slow."""
    slow = pytest.mark.slow
    marked = [pytest.param(name, marks=() if name in FAST else slow) for name in names]
    return pytest.mark.parametrize("name", marked)


def compare(target, x, method="gradient", *, key=None, valid=None, **chosen):
    """Scores by one pull back, and of components with zeros at all other sites."""
    options, given = Options(**chosen), {"key": key, "valid": valid}
    padded = {kind: baselines.baseline(target, kind) for kind in ("svd", "neurons")}

    @jax.jit
    def both(target, padded, x):
        kinds = equal_rank.terms_of_baselines(tuple(equal_rank.NAMES), target)
        joint = attribute_terms(method, target, kinds, x, options, **given)
        return joint, {
            kind: METHODS[method](target, one, x, options, **given).scores
            for kind, one in padded.items()
        }

    joint, expected = both(target, padded, x)
    assert set(joint) == set(padded)
    for kind, found in joint.items():
        scale = float(expected[kind].max())
        np.testing.assert_allclose(found, expected[kind], rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.slow
@parametrised(KINDS)
def test_one_pull_back_scores_terms_as_components_of_one_site(name):
    network, target, *_ = case(name)
    compare(target, network.inputs, mode="reverse")


@parametrised(tuple(name for name in KINDS if NETWORKS[name]().by_position is not None))
def test_for_every_position(name):
    network, target, *_ = case(name)
    compare(target, network.inputs, per_position=True, mode="reverse")


@parametrised(KINDS)
@pytest.mark.slow
def test_masks_of_columns_need_no_identity(name):
    network, target, *_ = case(name)
    terms = equal_rank.terms_of("neurons", target)
    factors = {site: one.factors() for site, one in terms.items()}
    owner = equal_rank.owners(terms)
    total = sum(one.num_components for one in terms.values())
    lead = (sites.batch_size(network.inputs),)
    if network.by_position is not None:
        lead += sites.position_shape(target, network.inputs)
    mask = jnp.asarray(np.random.default_rng(0).random((*lead, total)), jnp.float32)

    @jax.jit
    def outputs(target, parts, x, mask):
        return run(target, parts, x, mask)

    found, expected = (
        outputs(target, Parts(one, owner), network.inputs, mask) for one in (terms, factors)
    )
    assert_close(found, expected, 1e-4)
    whole = outputs(target, Parts(terms, owner), network.inputs, jnp.ones_like(mask))
    assert_close(whole, target(network.inputs), 1e-4)


class OptionsTest(absltest.TestCase):
    @pytest.mark.slow
    def test_sketches_averages_and_methods_without_derivatives(self):
        target, x = networks.make("mlp")
        compare(target, x, mode="sketch", num_probes=2, key=jax.random.key(0))
        compare(target, x, method="integrated_gradients", mode="reverse")
        compare(target, x, method="activation")
        compare(target, x, mode="reverse", metric="fisher", valid=jnp.arange(7) % 3 != 1)

    def test_the_network_is_pulled_back_once_and_no_identity_is_multiplied(self):
        target = networks.mlp(d_in=30, hidden=50, outputs=20)
        x = jnp.zeros((10, 30))
        kinds = equal_rank.terms_of_baselines(("svd", "bundled", "neurons"), target)

        def products(kinds):
            return operations(lambda t, x: attribute_terms("gradient", t, kinds, x), target, x)

        weights = 2 * (30 * 50 + 50 * 20)  # operations of a multiply-add are two
        once = 10 * weights  # reading x, and nothing else
        columns = products({"neurons": kinds["neurons"]})
        back = 2 * 20 * 10 * 50 * 20  # 20 outputs through the second layer
        forward = 2 * 10 * weights  # of the network, and its rows once more
        self.assertLessEqual(columns, back + forward + once)
        self.assertLess(products(kinds) - products({"svd": kinds["svd"]}), columns - back + 1)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
