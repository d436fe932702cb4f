"""The start from singular vectors: it adds up to the target, and keeps together what belongs."""

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from apd_jax import sites
from apd_jax.components import init_components
from apd_jax.objective.coefficients import Coefficients, Routes
from apd_jax.objective.objective import Objective
from apd_jax.sites import Target
from apd_jax.studies.language_model.network import LanguageModel
from apd_jax.training.initialisation import STARTS, constant_parts, singular

RULE = Objective()
constant_terms = jax.jit(constant_parts.terms, static_argnums=1)


def started(target, x, count, rank=None, objective=RULE):
    @jax.jit
    def start(target, x):
        components = init_components(jax.random.key(0), target, num_components=count, rank=rank)
        return STARTS["singular"](objective, target, x, components)

    return start(target, x)


def stacked():
    """A look-up, then two blocks of a stack, each on a half of what was looked up."""

    def network(params, x):
        rows = params["table"][x].reshape(*x.shape, 2, 3)
        return jnp.einsum("btgi,gio->bto", rows, params["stack"])

    params = {"table": networks.normal(0, 7, 6), "stack": networks.normal(1, 2, 3, 4)}
    x = jnp.arange(40).reshape(8, 5) % 7
    return Target(network, params, inputs=x), x


@jax.jit
def mean_inputs(target, x):
    """The mean of every site's input rows, divided by its norm."""
    _, records = sites.run(target, x, sites.as_is)
    rows = {record.name: record.x for record in records.values()}
    assert len(rows) == len(records)
    means = {name: x.reshape(-1, x.shape[-1]).mean(axis=0) for name, x in rows.items()}
    return {name: mean / jnp.linalg.norm(mean) for name, mean in means.items()}


class SumTest(parameterized.TestCase):
    @parameterized.parameters((3, 2), (6, 1), (5, 6))
    @pytest.mark.slow
    def test_components_add_up_where_there_is_room(self, count, rank):
        target, x = stacked()
        positions = Objective(per_position=True)
        self.check_sum(target, started(target, x, count, rank, positions))

    @pytest.mark.slow
    def test_a_transformer_per_position(self):
        task = LanguageModel(layers=1, width=8, heads=2, mlp_width=12, context=6)
        target = task.target(jax.jit(task.init)(jax.random.key(0)))
        x = jnp.asarray(np.random.default_rng(1).integers(0, 256, (9, 6)), jnp.int32)
        objective = Objective(
            Coefficients(minimality=1.0), per_position=True, metric="fisher", minimality_loss="kl"
        )
        self.check_sum(target, started(target, x, 5, 2, objective))

    def check_sum(self, target, components):
        sums = jax.jit(lambda tree: {site: factors.sum() for site, factors in tree.items()})
        for site, found in sums(components).items():
            reads = np.abs(np.asarray(components[site].reads))
            self.assertGreater(reads.min(axis=-1).max(), 0)
            np.testing.assert_allclose(
                found, target.weights[site], rtol=1e-4, atol=1e-5, err_msg=site
            )

    def test_best_approximation_without_room(self):
        """Of what is left without the part that reads the mean input."""
        target, x = networks.make("mlp")
        found, means = started(target, x, 1, 2), mean_inputs(target, x)
        for site, weight in target.weights.items():
            mean, weight = np.asarray(means[site]), np.asarray(weight)
            part = np.outer(mean, mean @ weight)
            u, s, vt = np.linalg.svd(weight - part, full_matrices=False)
            best = part + (u[:, :1] * s[:1]) @ vt[:1]
            np.testing.assert_allclose(found[site].sum(), best, rtol=1e-3, atol=1e-4)

    def test_every_slot_can_be_trained(self):
        target, x = networks.make("mlp")
        for factors in started(target, x, 6, 2).values():
            self.assertTrue(np.all(np.linalg.norm(factors.reads, axis=-1) > 0))


class MeanInputTest(parameterized.TestCase):
    @parameterized.parameters(False, True)
    @pytest.mark.slow
    def test_what_reads_it_is_in_the_first_component(self, with_valid):
        target, x = networks.make("mlp")
        x = jnp.abs(x)
        given, objective = x, RULE
        if with_valid:  # rows that do not count are no part of the mean
            given = jnp.concatenate([x, jnp.full_like(x, jnp.nan)])
            objective = Objective(valid=lambda inputs: jnp.isfinite(inputs[:, 0]))
        found, means = started(target, given, 12, 1, objective), mean_inputs(target, x)
        for site, weight in target.weights.items():
            mean, weight = np.asarray(means[site]), np.asarray(weight)
            written = np.einsum("i,cio->co", mean, found[site].matrices())
            np.testing.assert_allclose(written[0], mean @ weight, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(written[1:], 0, atol=1e-4)

    def test_blocks_of_a_stack_have_means_of_their_own(self):
        def network(params, x):
            rows = params["table"][x].reshape(*x.shape, 2, 3)
            return jnp.einsum("btgi,gio->btgo", rows, params["stack"]).reshape(*x.shape, 8)

        target = Target(network, stacked()[0].params, inputs=(x := stacked()[1]))
        measure = functools.partial(constant_parts.mean_inputs, Objective(per_position=True))
        means = jax.jit(lambda target, x: measure(target, x, 4))(target, x)
        rows = np.asarray(target.params["table"])[x].reshape(40, 2, 3)
        expected = rows.mean(axis=0) / np.linalg.norm(rows.mean(axis=0), axis=1, keepdims=True)
        self.assertEqual(list(means), ["stack"])
        np.testing.assert_allclose(means["stack"].direction, expected, rtol=1e-4)
        share = np.sum(rows.mean(0) ** 2, 1) / np.mean(np.sum(rows**2, 2), 0)
        np.testing.assert_array_equal(means["stack"].counts, share > 0.02)
        weight = target.weights["stack"]
        terms = constant_terms(weight, 9, means["stack"])
        np.testing.assert_allclose(np.einsum("gmi,gmo->gio", *terms), weight, rtol=1e-4, atol=1e-5)

    def test_a_mean_of_noise_is_no_part(self):
        weight = jnp.asarray(networks.normal(0, 5, 4))
        mean = constant_parts.MeanInput(jnp.eye(5)[0], jnp.array(False))
        found = constant_terms(weight, 3, mean)
        u, s, vt = np.linalg.svd(weight, full_matrices=False)
        expected = np.einsum("ik,k,ko->kio", u, s, vt)[:3]
        np.testing.assert_allclose(np.einsum("mi,mo->mio", *found), expected, rtol=1e-3, atol=1e-5)


class DealingTest(absltest.TestCase):
    def test_parts_that_are_used_together_start_together(self):
        """Two networks side by side, each on inputs of its own: no component mixes them."""
        rotations = [np.linalg.qr(networks.normal(i, 3, 3))[0] for i in range(4)]
        first, second = (
            jax.scipy.linalg.block_diag(*pair) for pair in (rotations[:2], rotations[2:])
        )
        target = Target(
            lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"],
            {"a": first, "b": second},
            inputs=jnp.zeros((2, 6)),
        )
        draw = np.random.default_rng(0)
        x = draw.normal(size=(200, 6)) * np.repeat(np.eye(2)[draw.integers(0, 2, 200)], 3, axis=1)
        found = started(target, jnp.asarray(x, jnp.float32), 4, 3)
        for factors in found.values():
            sizes = np.abs(factors.matrices()).reshape(4, 2, 3, 6).sum(axis=(2, 3))
            self.assertLess(float((sizes.min(axis=1) / (sizes.max(axis=1) + 1e-9)).max()), 1e-3)
        owners = [np.abs(f.matrices()).reshape(4, 2, 18).sum(axis=2) > 1e-3 for f in found.values()]
        np.testing.assert_array_equal(*(o.sum(axis=0) > 0 for o in owners))

    def test_terms_are_dealt_in_the_order_of_their_size_to_those_with_room(self):
        draw = np.random.default_rng(1)
        similarity, mass = draw.uniform(size=(9, 4)), draw.uniform(size=9)
        blocks, room = np.repeat([0, 1], [4, 5]), np.array([1, 2])
        component, slot = singular._deal(jnp.asarray(similarity), jnp.asarray(mass), blocks, room)
        counts = np.zeros((4, 2), int)
        for q in np.argsort(-mass):
            free = [c for c in range(4) if counts[c, blocks[q]] < room[blocks[q]]]
            best = max(free, key=lambda c, q=q: similarity[q, c])
            self.assertEqual((int(component[q]), int(slot[q])), (best, counts[best, blocks[q]]))
            counts[best, blocks[q]] += 1

    @pytest.mark.slow
    def test_uses_are_attributions(self):
        """With many probes, the uses of terms are their attributions by the exact route."""
        target, x = stacked()
        terms = {site: singular._terms(weight, 9) for site, weight in target.weights.items()}
        with_many = 20_000
        original, singular._PROBES = singular._PROBES, with_many
        self.addCleanup(setattr, singular, "_PROBES", original)
        objective = Objective(per_position=True)
        found = jax.jit(lambda x: singular._uses(objective, target, terms, x, None))(x)
        exact = Objective(per_position=True, routes=Routes(attribution_mode="literal"))
        start = 0
        for site, factors in terms.items():
            alone = Target(target.apply_fn, target.params, [site], inputs=x)
            scores = jax.jit(exact.attribute)(alone, {site: factors}, x).scores
            scores = scores.reshape(-1, scores.shape[-1])
            np.testing.assert_allclose(
                found[:, start : start + scores.shape[1]], scores, rtol=0.1, atol=0.02
            )
            start += scores.shape[1]


if __name__ == "__main__":
    absltest.main()
