"""Refinement: every move on components whose fault is known, and rounds inside of a training."""

import dataclasses
import functools
from unittest import mock

import chex
import handmade
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from jax.extend import core

from apd_jax import sites
from apd_jax.components import Factors, init_components, squared_norms
from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.errors import UserError
from apd_jax.masked.forward import masked_apply
from apd_jax.objective.coefficients import Coefficients
from apd_jax.objective.objective import Objective
from apd_jax.runtime import loop
from apd_jax.sites import Target
from apd_jax.training.config import Settings
from apd_jax.training.refine import rounds, shares
from apd_jax.training.refine.activity import look
from apd_jax.training.refine.clean import share
from apd_jax.training.refine.gather import gather
from apd_jax.training.refine.merge import merge
from apd_jax.training.refine.rules import Rules
from apd_jax.training.refine.site_rows import second_moments, table
from apd_jax.training.refine.split import two_clusters
from apd_jax.training.trainer import Trainer

FEATURES, SPARE = 6, 3
OBJECTIVE = Objective(Coefficients(1.0, 1.0, 0.1), topk=0.6)
INPUTS = SparseFeatures(FEATURES, 0.1, (-1.0, 1.0))
WHOLE = np.eye(FEATURES + SPARE, FEATURES)


def halved():
    """Feature 0 half in component 0 and half in the first spare one."""
    shares_ = WHOLE.copy()
    shares_[0, 0] = shares_[FEATURES, 0] = 0.5
    return shares_


def merged():
    """Features 0 and 1 in component 0."""
    shares_ = WHOLE.copy()
    shares_[0, 1], shares_[1, 1] = 1.0, 0.0
    return shares_


def missing():
    """Feature 0 in small parts everywhere."""
    shares_ = WHOLE.copy()
    shares_[:, 0] = [0.0, *[0.1] * (FEATURES - 1), *[0.5 / SPARE] * SPARE]
    return shares_


def left_over():
    """A spare component keeps a twentieth of every feature."""
    shares_ = 0.95 * WHOLE
    shares_[FEATURES] = 0.05
    return shares_


@functools.partial(jax.jit, static_argnums=(0, 1))
def jitted_move(objective, rules, target, components, x):
    with jax.default_matmul_precision("highest"):
        return rounds.move(objective, rules, target, components, x)


def move(components, target, objective=OBJECTIVE):
    return jitted_move(objective, Rules(), target, components, INPUTS(jax.random.key(3), 4096))


# One program compiles in a third of the time that its operations take one by one.
EASY = Rules(merge_cosine=0.1, split_cosine=0.9, free_share=0.5)  # so that moves are made
easy_move = functools.partial(jitted_move, OBJECTIVE, EASY)
clusters, jitted_share = jax.jit(two_clusters), jax.jit(share)


def _heads(params, x):
    return jnp.einsum("bgi,gio->bgo", x.reshape(-1, 2, 3), params["w"])


def _convolve(params, x):
    images = x.reshape(-1, 3, 2)
    dimensions = ("NHC", "HIO", "NHC")
    return jax.lax.conv_general_dilated(
        images, params["w"], (1,), "SAME", dimension_numbers=dimensions
    ).reshape(x.shape[0], -1)


def holders(components, share=0.7):
    """For every feature, the components that hold most of it at both sites, [F] lists."""
    parts = [np.asarray(jnp.diagonal(f.matrices(), axis1=1, axis2=2)) for f in components.values()]
    held = np.minimum.reduce(parts) > share
    return [np.flatnonzero(held[:, feature]).tolist() for feature in range(held.shape[1])]


class MovesTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("merge", halved, {"merges": 1}),
        ("split", merged, {"splits": 1}),
        ("clean", left_over, {"cleans": 1}),
        ("nothing", lambda: WHOLE, {}),
    )
    @pytest.mark.slow
    def test_each_mends_its_fault_at_all_sites(self, shares_of, expected):
        target = handmade.exact_resid_mlp(FEATURES)
        components = handmade.neuron_components(shares_of())
        after, counts, touched = move(components, target)
        made = {name: int(count) for name, count in counts.items() if count}
        self.assertEqual({name: made[name] for name in expected}, expected)
        self.assertEqual(bool(touched.any()), bool(expected))
        self.assertEqual(bool(made), bool(expected))
        found = holders(after)
        self.assertTrue(all(len(holder) == 1 for holder in found), found)
        self.assertLen({holder[0] for holder in found}, FEATURES)
        for site, factors in after.items():
            np.testing.assert_allclose(factors.sum(), components[site].sum(), atol=2e-5)

    @pytest.mark.slow
    def test_gather_gives_a_free_component_what_is_missing(self):
        target = handmade.exact_resid_mlp(FEATURES)
        components = handmade.neuron_components(missing())
        x = INPUTS(jax.random.key(3), 4096)
        objective = dataclasses.replace(OBJECTIVE, topk=0.4)

        @jax.jit
        def gathered(parts):
            seen = look(objective, target, parts, x)

            def errors(others):
                return look(objective, target, others, x).errors

            return gather(parts, seen, seen.free(0.1), errors, share=0.1, limit=5)[:2]

        after, count = gathered(components)
        self.assertEqual(int(count), 1)
        self.assertEqual(holders(after)[1:], [[1], [2], [3], [4], [5]])
        self.assertLen(holders(after)[0], 1)
        for site, factors in after.items():
            np.testing.assert_allclose(factors.sum(), components[site].sum(), atol=2e-5)

    @parameterized.parameters("tms_hidden", "mlp")  # the first has all that "tms" has
    @pytest.mark.slow
    def test_sum_stays_for_any_components(self, name):
        target, _ = networks.make(name)
        width = {"tms_hidden": 4, "mlp": 3}[name]
        components = handmade.random_components(
            np.random.default_rng(0), target, num_components=7, rank=6
        )
        x = jax.random.normal(jax.random.key(0), (512, width))
        after, counts, _ = easy_move(target, components, x)
        self.assertGreater(sum(map(int, counts.values())), 0)
        for site, factors in after.items():
            np.testing.assert_allclose(factors.sum(), components[site].sum(), atol=1e-4)

    @parameterized.named_parameters(
        (
            "stacked",
            lambda p, x: jnp.einsum("bgi,gio->bgo", x.reshape(-1, 2, 3), p["w"]),
            (2, 3, 3),
        ),
        ("look-up", lambda p, x: p["w"][jnp.argmax(x, axis=1)], (FEATURES, 3)),
        ("always transposed", lambda p, x: x @ p["w"][0] @ p["w"][1].T, (2, FEATURES, FEATURES)),
    )
    @pytest.mark.slow
    def test_sum_stays_for_any_kind_of_use(self, apply_fn, shape):
        self.check_sum_stays(apply_fn, shape)

    @pytest.mark.slow
    def test_sum_stays_for_convolutions(self):
        self.check_sum_stays(_convolve, (3, 2, 2))

    def check_sum_stays(self, apply_fn, shape):
        x = jax.random.normal(jax.random.key(0), (512, FEATURES))
        target = Target(apply_fn, {"w": networks.normal(1, *shape)}, inputs=x)
        components = init_components(jax.random.key(1), target, num_components=7, rank=6)
        after, counts, _ = easy_move(target, components, x)
        self.assertGreater(sum(map(int, counts.values())), 0)
        for site, factors in after.items():
            self.assertEqual(factors.reads.shape, components[site].reads.shape)
            np.testing.assert_allclose(factors.sum(), components[site].sum(), atol=1e-4)

    @pytest.mark.slow
    def test_a_component_that_is_always_active_is_left_alone(self):
        target = handmade.exact_resid_mlp(FEATURES)
        components = handmade.neuron_components(np.concatenate([0.9 * WHOLE, np.full((1, 6), 0.1)]))
        objective = dataclasses.replace(OBJECTIVE, distil=True)
        after, _, _ = move(components, target, objective)
        last = jax.tree.map(lambda leaf: leaf[-1], (components, after))
        chex.assert_trees_all_equal(*last)

    def test_merge_adds_what_points_the_same_way_only(self):
        parts = np.zeros((4, 3, 2))
        parts[0, 0], parts[1, 0], parts[2, 1] = (1, 0), (0.5, 0.01), (1, 0)
        components = handmade.full_rank({"w": parts})
        after, count, touched = merge(components, jnp.zeros(4, bool), cosine=0.9)
        self.assertEqual(int(count), 1)
        self.assertEqual(touched.tolist(), [True, True, False, False])
        expected = parts.copy()
        expected[0], expected[1] = parts[0] + parts[1], 0
        np.testing.assert_allclose(after["w"].matrices(), expected, atol=1e-6)


class ClustersTest(parameterized.TestCase):
    @parameterized.parameters((1, 0.5, 1.0), (2, 0.0, 0.2))
    def test_counts_lines_not_signs(self, lines, least, most):
        random = np.random.default_rng(0)
        which, signs = random.integers(lines, size=400), random.choice([-1, 1], 400)
        x = signs[:, None] * np.eye(5)[which] + 0.2 * random.normal(size=(400, 5))
        x = jnp.array(x / np.linalg.norm(x, axis=1, keepdims=True))
        found = clusters(x, jnp.ones(400))
        self.assertBetween(float(found.cosine), least, most)

    def test_one_mechanism_beside_a_neighbour_is_not_split(self):
        random = np.random.default_rng(0)
        x = np.eye(5)[np.zeros(400, int)] + 0.05 * random.normal(size=(400, 5))
        x[:200, 1] += 1.2  # of half of the examples the neighbour has the larger part
        x = jnp.array(x / np.linalg.norm(x, axis=1, keepdims=True))
        cosine = float(clusters(x, jnp.ones(400)).cosine)
        self.assertBetween(cosine, Rules().split_cosine, 0.5)

    def test_examples_between_the_clusters_count_for_little(self):
        x = np.eye(4)[np.arange(400) % 2]
        x[:40, :2] = np.sqrt(0.5)
        found = clusters(jnp.array(x), jnp.ones(400))
        weights = np.zeros(400)
        weights[np.asarray(found.examples)] = found.weights
        self.assertLess(weights[:40].max(), 0.01 * weights[40:].min())

    def test_a_few_examples_are_no_cluster(self):
        x = jnp.eye(2)[jnp.array([0] * 90 + [1] * 10)]
        self.assertEqual(float(clusters(x, jnp.ones(100)).cosine), 1.0)
        self.assertEqual(float(clusters(x[80:], jnp.zeros(20)).cosine), 1.0)


class SharesTest(parameterized.TestCase):
    def test_compress_is_the_best_of_its_rank(self):
        random = np.random.default_rng(0)
        reads, writes = random.normal(size=(9, 5)), random.normal(size=(9, 4))
        found = shares.compress(jnp.array(reads), jnp.array(writes), 2)
        u, s, v = np.linalg.svd(reads.T @ writes)
        expected = u[:, :2] * s[:2] @ v[:2]
        np.testing.assert_allclose(found.reads.T @ found.writes, expected, atol=1e-4)
        np.testing.assert_allclose(
            jnp.linalg.norm(found.reads, axis=1), jnp.linalg.norm(found.writes, axis=1), rtol=1e-4
        )

    def test_compress_fills_up_with_zeros(self):
        found = shares.compress(jnp.ones((1, 3)), jnp.ones((1, 2)), 4)
        self.assertEqual(found.reads.shape, (4, 3))
        np.testing.assert_allclose(found.reads.T @ found.writes, np.ones((3, 2)), rtol=1e-5)

    def test_gram_is_that_of_the_matrices(self):
        target, _ = networks.make("mlp")
        components = handmade.random_components(
            np.random.default_rng(0), target, num_components=4, rank=2
        )
        flat = jnp.concatenate([f.matrices().reshape(4, -1) for f in components.values()], axis=1)
        np.testing.assert_allclose(shares.gram(components), flat @ flat.T, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(squared_norms(components), jnp.sum(flat**2, axis=1), rtol=1e-4)

    def test_shares_sum_to_what_is_read(self):
        rows = networks.normal(0, 50, 2, 4)
        weights = jax.random.uniform(jax.random.key(0), (50, 3))

        @jax.jit
        def whole(reads):
            part = shares.partition(second_moments(rows, weights.sum(1), 4))
            own = [second_moments(rows, weights[:, g], 4) for g in range(3)]
            return sum(part(moment, reads) for moment in own)

        for reads in (jnp.eye(4), networks.normal(1, 4, 4)):
            np.testing.assert_allclose(whole(reads), reads, atol=1e-2)

    @parameterized.parameters(
        (lambda w: jnp.repeat(w, 2, axis=0),),
        (lambda w: w[jnp.array([2, 0, 2, 1, 1, 1])],),
        (lambda w: jnp.tile(w, (2, 1)),),
    )
    def test_rows_that_a_use_reads_repeatedly(self, move):
        w, x = networks.normal(0, 3, 4), networks.normal(1, 5, 6)
        target = Target(lambda w, x: x @ move(w), w, inputs=x)
        components = init_components(jax.random.key(0), target, num_components=1, rank=1)
        y, records = sites.run(target, x, sites.as_is)
        (record,) = records.values()
        rows = table(record, components[""], len(x))
        np.testing.assert_allclose(rows[:, 0] @ w, y, rtol=1e-5, atol=1e-5)

    def test_indices_of_a_look_up_are_one_hot_rows(self):
        indices = jnp.asarray(np.random.default_rng(0).integers(0, 6, (50, 3)))
        weights = jax.random.uniform(jax.random.key(0), (50, 2))
        reads = networks.normal(1, 4, 2, 6)

        @jax.jit
        def parts(rows):
            part = shares.partition(second_moments(rows, weights.sum(1), 6))
            return jnp.stack([part(second_moments(rows, w, 6), reads) for w in weights.T])

        found = [parts(rows) for rows in (indices, jax.nn.one_hot(indices, 6))]
        # Two indices of a row meet in the moments of one-hot rows, but not in the diagonal.
        alone = indices[:, :1]
        diagonal = second_moments(alone, weights[:, 0], 6)
        whole = second_moments(jax.nn.one_hot(alone, 6), weights[:, 0], 6)
        np.testing.assert_allclose(jnp.diag(diagonal), whole, rtol=1e-5)
        np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)

    def test_blocks_are_mapped_over(self):
        stacked = Factors(networks.normal(0, 3, 4, 2, 5), networks.normal(1, 3, 4, 2, 6))
        blocks = [jax.tree.map(lambda leaf, g=g: leaf[:, g], stacked) for g in range(4)]
        whole = {"w": stacked}
        apart = {str(g): block for g, block in enumerate(blocks)}
        gram, norms = jax.jit(shares.gram), jax.jit(squared_norms)
        np.testing.assert_allclose(gram(whole), gram(apart), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(norms(whole), norms(apart), rtol=1e-5)
        add = jax.jit(lambda f: shares.add_into(f, 0, 2))
        added = jax.jit(lambda f: shares.by_block(add, f))(stacked)
        for g, block in enumerate(blocks):
            expected = add(block).matrices()
            np.testing.assert_allclose(added.matrices()[:, g], expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_free_components_share_what_they_hold(self):
        free = jnp.array([1, 0, 1, 1, 0, 1, 1], bool)
        factors = Factors(networks.normal(0, 7, 2, 9), networks.normal(1, 7, 2, 5))
        shared = jitted_share({"site": factors}, free)["site"]
        np.testing.assert_allclose(shared.sum(), factors.sum(), atol=1e-5)
        before, after = factors.matrices(), shared.matrices()
        np.testing.assert_array_equal(after[~free], before[~free])
        # Ten terms for five directions: each direction is in two equal pieces.
        u, s, vt = np.linalg.svd(before[free].sum(axis=0))
        pieces = np.abs(np.einsum("ik,cio,ko->ck", u[:, :5], after[free], vt))
        np.testing.assert_allclose(pieces.max(axis=0), s / 2, rtol=1e-4)
        np.testing.assert_array_equal(np.sum(pieces > 1e-4, axis=0), 2)

    def test_nothing_is_shared_without_free_components(self):
        factors = Factors(networks.normal(0, 3, 2, 4), networks.normal(1, 3, 2, 5))
        shared = jitted_share({"site": factors}, jnp.zeros(3, bool))["site"]
        jax.tree.map(np.testing.assert_array_equal, shared, factors)


class EvidenceTest(absltest.TestCase):
    def test_weights_errors_and_who_is_free(self):
        target = handmade.exact_resid_mlp(FEATURES)
        components = handmade.neuron_components(WHOLE)
        x = INPUTS(jax.random.key(0), 1024)

        @jax.jit
        def looked(x):
            seen = look(OBJECTIVE, target, components, x)
            return seen._replace(moments=None), seen.free(0.03)

        seen, free = looked(x)
        self.assertEqual(free.tolist(), [False] * FEATURES + [True] * SPARE)
        np.testing.assert_allclose(jnp.linalg.norm(seen.directions, axis=1) > 0.5, x.any(axis=1))
        self.assertLess(float(seen.errors.max()), 0.1)

    def test_in_the_metric_of_minimality(self):
        """A KL divergence for every position, and shares of its attributions."""
        params = {"a": networks.normal(0, 3, 4), "b": networks.normal(1, 4, 5)}
        x = networks.normal(2, 2, 3, 3)
        target = Target(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, inputs=x)
        components = init_components(jax.random.key(0), target, num_components=4, rank=2)
        objective = dataclasses.replace(
            OBJECTIVE, topk=2, selection="sample", per_position=True, minimality_loss="kl"
        )

        @jax.jit
        def measured():
            seen = look(objective, target, components, x, block_size=1, measure="minimality")
            scores = objective.attribute(target, components, x).scores
            mask = objective.select(scores, x).mask
            masked = [masked_apply(target, components, x, own) for own in (mask, 0 * mask)]
            return seen._replace(moments=None), scores, mask, target(x), masked

        seen, scores, mask, outputs, masked = measured()
        p = jax.nn.softmax(outputs)
        for errors, logits in zip((seen.errors, seen.stakes), masked, strict=True):
            q = jax.nn.softmax(logits)
            expected = jnp.sum(p * jnp.log(p / q), axis=-1).reshape(-1)
            np.testing.assert_allclose(errors, expected, rtol=1e-3, atol=1e-6)
        squares = jnp.square(scores)
        expected = mask * squares / jnp.sum(squares, axis=-1, keepdims=True)
        np.testing.assert_allclose(seen.weights, expected.reshape(-1, 4), rtol=1e-4)


def equations(jaxpr):
    """Every equation of a program, those of the programs inside it too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in core.jaxprs_in_params(eqn.params):
            yield from equations(inner)


class ProgramOfARoundTest(absltest.TestCase):
    """Its size, without compiling it."""

    def program(self, apply_fn, params, x):
        target = Target(apply_fn, params, inputs=x)
        components = init_components(jax.random.key(0), target, num_components=3, rank=1)
        rules = Rules(every=10)
        run = lambda c: rounds.move(OBJECTIVE, rules, target, c, x)  # noqa: E731
        return list(equations(jax.make_jaxpr(run)(components).jaxpr))

    @pytest.mark.slow
    def test_does_not_grow_with_the_blocks_of_a_site(self):
        def apply_fn(p, x):
            return jnp.tanh(jnp.einsum("bgi,gio->bgo", x, p["w"])).reshape(len(x), -1)

        sizes = [
            len(self.program(apply_fn, {"w": jnp.ones((g, 2, 2))}, jnp.ones((9, g, 2))))
            for g in (2, 7)
        ]
        self.assertEqual(*sizes)

    @pytest.mark.slow
    def test_grows_in_proportion_to_the_sites(self):
        def apply_fn(p, x):
            for w in p.values():
                x = jnp.tanh(x @ w)
            return x

        def size(layers):
            params = {str(layer): jnp.ones((2, 2)) for layer in range(layers)}
            return len(self.program(apply_fn, params, jnp.ones((9, 2))))

        few, some, many = map(size, (2, 5, 8))
        self.assertLess(many - some, 1.05 * (some - few))

    def test_has_no_matrix_of_the_vocabulary_squared(self):
        vocabulary = 200
        params = {"E": jnp.ones((vocabulary, 4)), "A": jnp.ones((4, 2))}
        found = self.program(
            lambda p, x: jnp.tanh(p["E"][x].mean(1)) @ p["A"], params, jnp.zeros((9, 3), jnp.int32)
        )
        largest = max(getattr(var.aval, "size", 0) for eqn in found for var in eqn.outvars)
        self.assertLess(largest, vocabulary**2 // 4)


def settings(**fields):
    signs = {"merge_cosine": 0.3, "split_cosine": 0.9, "free_share": 0.5}  # so that moves are made
    rules = Rules(every=20, until=0.5, batch_size=256, ramp=5, **signs)
    return Settings(
        objective=OBJECTIVE,
        num_components=8,
        steps=100,
        batch_size=64,
        learning_rate=1e-2,
        rank=3,
        schedule="constant",
        **({"refine": rules} | fields),
    )


def trainer(chosen, seeds):
    targets = loop.stack([handmade.exact_resid_mlp(FEATURES)] * len(seeds))
    return Trainer(chosen, targets, INPUTS, jnp.array(seeds, jnp.uint32))


def train(training, start=None, steps=None, observer=None):
    return loop.run_steps(
        training,
        training.init_state() if start is None else start,
        chunk_steps=10,  # divides every length, so that one program does
        steps=steps,
        observer=observer,
    )


class RoundsTest(parameterized.TestCase):
    @pytest.mark.slow
    def test_goes_on_bit_for_bit_from_between_two_rounds_and_from_a_round(self):
        training = trainer(settings(), [0, 1])
        straight = train(training)
        self.assertGreater(sum(int(n.sum()) for n in straight.refined.counts.values()), 0)
        for stop in (40, 50):
            half = jax.tree.map(np.asarray, train(training, steps=stop))
            start = jax.tree.map(jnp.asarray, half)
            chex.assert_trees_all_equal(train(training, start=start), straight)

    def test_looks_back_once_after_the_last_round(self):
        between = trainer(settings(), [0]).between
        self.assertEqual([t for t in range(100) if between.due(t)], [20, 40, 60])
        self.assertIsNone(trainer(settings(refine=Rules()), [0]).between)

    @pytest.mark.slow
    def test_a_round_that_did_not_pay_is_undone(self):
        chosen = settings()
        target = handmade.exact_resid_mlp(FEATURES)
        good, bad = (handmade.neuron_components(WHOLE[:8] * scale).copy() for scale in (1.0, 0.3))
        training = trainer(chosen, [0])
        state = loop.pick(training.init_state(), 0)
        function = jax.jit(training.between.function)
        for acted, undone in ((True, 1), (False, 0)):
            refined = state.refined._replace(before=good, acted=jnp.array(acted))
            after = function(
                target,
                state._replace(step=jnp.int32(60), components=bad, refined=refined),
                jax.random.key(0),
            )
            self.assertEqual(int(after.refined.counts["undone"]), undone)
            expected = good if undone else bad
            for site, factors in after.components.items():
                np.testing.assert_allclose(factors.matrices(), expected[site].matrices(), atol=1e-6)

    def test_terms_that_are_zero_read_again(self):
        components = handmade.neuron_components(WHOLE)
        filled = rounds.refill(components, jax.random.key(0), unit_norm=True)
        for site, factors in filled.items():
            np.testing.assert_allclose(jnp.linalg.norm(factors.reads, axis=-1), 1, rtol=1e-5)
            np.testing.assert_allclose(factors.matrices(), components[site].matrices(), atol=1e-6)

    def test_moments_of_touched_components_are_zero(self):
        """Only what has the components' structure is a moment, not every array of two axes."""
        components = networks.components(networks.mlp())
        adam = optax.adam(0.1)
        _, state = adam.update(components, adam.init(components))
        other = jnp.ones((3, 4))
        forget = jax.jit(rounds.forget)
        kept, kept_other = forget((state, other), components, jnp.array([True, False, True]))
        for moments, before in ((kept[0].mu, state[0].mu), (kept[0].nu, state[0].nu)):
            for leaf, old in zip(jax.tree.leaves(moments), jax.tree.leaves(before), strict=True):
                np.testing.assert_array_equal(leaf[jnp.array([0, 2])], 0)
                np.testing.assert_array_equal(leaf[1], old[1])
        self.assertEqual(int(kept[0].count), 1)
        np.testing.assert_array_equal(kept_other, other)

    @pytest.mark.slow
    def test_shares_in_the_last_round(self):
        target = handmade.exact_resid_mlp(FEATURES)
        components = handmade.neuron_components(left_over())
        x = INPUTS(jax.random.key(3), 4096)

        def keep(parts, seen, free, loss):
            return parts, 0, jnp.zeros_like(free)

        @jax.jit
        def move_of_a_round(last):
            return rounds.move(OBJECTIVE, Rules(share=True), target, components, x, last=last)

        for last in (False, True):
            with mock.patch.object(rounds, "clean", keep):
                moved, _, touched = move_of_a_round(last)
            norms = squared_norms(moved)[FEATURES:]
            self.assertEqual(bool(touched[FEATURES:].all()), last)
            self.assertEqual(float(norms.min()) > 0.1 * float(norms.max()), last)

    def test_rate_rises_again_after_a_round(self):
        rate = settings().rate()
        steps = jnp.array([1, 19, 20, 24, 30, 40, 60, 80])
        np.testing.assert_allclose(
            jax.vmap(rate)(steps), 1e-2 * np.array([1, 1, 0.2, 1, 1, 0.2, 1, 1]), rtol=1e-5
        )

    @parameterized.parameters((8000, 800, 6), (4000, 400, 6), (2000, 200, 6), (1234, 100, 7))
    def test_spacing_by_a_share_of_the_steps(self, steps, spacing, rounds):
        rules = Rules(every=0.1)
        self.assertEqual(rules.spacing(steps), spacing)
        self.assertEqual(rules.rounds(steps), rounds)

    def test_no_rounds(self):
        self.assertEqual(Rules().rounds(4000), 0)
        self.assertEqual(Rules(every=0.1).rounds(150), 0)  # not before the rate has risen
        self.assertEqual(Rules(every=250.0).spacing(2000), 250)

    @parameterized.parameters(
        {"every": 2.5},
        {"every": -1},
        {"until": 1.0},
        {"batch_size": 0},
        {"merge_cosine": 0.0},
        {"ramp": 0},
    )
    def test_refuses_rules_out_of_range(self, **fields):
        with self.assertRaisesRegex(UserError, next(iter(fields))):
            Rules(**fields)


if __name__ == "__main__":
    absltest.main()
