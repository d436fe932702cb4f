"""Every line of the evidence against a literal loop.

Letters: N examples, B examples of a block, T positions, C components.
"""

import dataclasses
import decimal
import fractions
import functools
import math
from unittest import mock

import evidence_cases as cases
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax import randomness
from apd_jax.evaluation import baselines, ranks
from apd_jax.evaluation.evidence import (
    adversary,
    baseline_lines,
    cost,
    distance,
    equal_rank,
    lines,
    rows,
)
from apd_jax.evaluation.evidence.rows import Examples
from apd_jax.runtime import progress

N, SIZE, K, DRAWS, STEPS = 21, 10, 1.3, 2, (2, 3)


def halves(key, shape):
    return jax.random.bernoulli(key, 0.5, shape)


class Literal:
    """Lines of a network of values with one mask an example, block by block."""

    def __init__(self, found, x, valid):
        self.found, self.x, self.valid = found, np.asarray(x), np.asarray(valid)
        self.target = np.asarray(found.target(x), np.float64)
        parts = [np.arange(0, 11), np.arange(11, 21)]
        self.blocks = [(p, 11) for p in parts]
        scores = np.asarray(
            networks.literal_attributions(found.target, found.components, x, "target")
        )
        self.mask = np.zeros(scores.shape, bool)
        for part in parts:
            self.mask[part] = cases.own_masks(scores[part], self.valid[part], K)

    def run(self, mask):
        return np.asarray(
            networks.literal_masked(self.found.target, self.found.components, self.x, mask)
        )

    def distance(self, outputs, counts=None):
        counts = self.valid if counts is None else counts
        errors = [np.sum((outputs[i] - self.target[i]) ** 2) for i in np.flatnonzero(counts)]
        units = [np.sum(self.target[i] ** 2) for i in np.flatnonzero(counts)]
        return sum(errors) / sum(units)

    def keys(self, seed=0):
        key = randomness.stream(seed, "evidence")
        return [jax.random.fold_in(key, number) for number in range(len(self.blocks))]

    def drawn(self, stream, draw, kind=jax.random.uniform):
        """[N, C] the random numbers of all blocks, in the order of the examples."""
        found = []
        for key, (part, size) in zip(self.keys(), self.blocks, strict=True):
            one = jax.random.fold_in(jax.random.fold_in(key, stream), draw)
            shape = (size, self.mask.shape[1])
            found.append(np.asarray(kind(one, shape=shape))[: len(part)])
        return np.concatenate(found)

    def random(self, stream, kind=jax.random.uniform):
        values = []
        for draw in range(DRAWS):
            r = self.drawn(stream, draw, kind)
            values.append(self.distance(self.run(np.where(self.mask, 1.0, r))))
        return np.mean(values)

    @functools.cached_property
    def gradient(self):
        """A function of r [N, C]: the gradient of the sum of all errors, and the errors."""
        target = jnp.asarray(self.target, jnp.float32)

        def total(r):
            mask = jnp.where(self.mask, 1.0, r)
            outputs = networks.literal_masked(
                self.found.target, self.found.components, self.x, mask
            )
            errors = jnp.sum((outputs - target) ** 2, axis=1) * self.valid
            return jnp.sum(errors), errors

        return jax.jit(jax.grad(total, has_aux=True))

    def ascent(self, r, shared):
        best, found = None, {}
        for step in range(STEPS[-1] + 1):
            gradient, errors = map(np.asarray, self.gradient(np.broadcast_to(r, self.mask.shape)))
            if shared:
                gradient = gradient.sum(axis=0)
                best = errors if best is None or errors.sum() > best.sum() else best
            else:
                best = errors if best is None else np.maximum(best, errors)
            if step in STEPS:
                found[step] = best.sum() / np.sum(self.target[self.valid] ** 2)
            r = np.clip(r + 0.1 * np.sign(gradient), 0, 1)
        return found


class ValuesTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        target = networks.mlp()
        x = networks.normal(5, N, 3)
        components = networks.components(target, 4, 2)
        # Near the network, so that no line is all but infinite.
        components = {
            s: apd_jax.Factors(f.reads * 0.6, f.writes * 0.6) for s, f in components.items()
        }
        cls.found = cases.decomposition(target, components, x, batch_size=SIZE, topk=K)
        cls.valid = np.arange(N) % 5 != 3
        cls.x = x
        cls.evidence, cls.done = cls.measured()
        cls.literal = Literal(cls.found, x, cls.valid)

    @classmethod
    def measured(cls, **options):
        """The evidence, and how many passes the progress bar counted."""
        options = {"valid": cls.valid, "adversary_steps": STEPS, "draws": DRAWS} | options
        with mock.patch.object(progress.Progress, "update") as update:
            evidence = cls.found.evidence(cls.x, **options)
        return evidence, update.call_args.args[0]

    def close(self, name, value):
        np.testing.assert_allclose(self.evidence[name], value, rtol=2e-4, atol=1e-7)

    def test_own_all_none(self):
        literal = self.literal
        self.close("own", literal.distance(literal.run(literal.mask)))
        self.close("all", literal.distance(literal.run(np.ones(literal.mask.shape))))
        self.close("zero", literal.distance(literal.run(np.zeros(literal.mask.shape))))

    def test_never_needed(self):
        literal = self.literal
        used = literal.mask[self.valid].any(axis=0)
        mask = np.broadcast_to(used, literal.mask.shape)
        self.close("never_needed", literal.distance(literal.run(mask)))
        self.assertEqual(self.evidence["alive"], used.sum())

    def test_random(self):
        self.close("random", self.literal.random(0))
        self.close("random_half", self.literal.random(1, halves))

    @parameterized.parameters(8, 64)
    def test_pooled(self, size):
        literal = self.literal
        pooled, kept = np.zeros_like(literal.mask), np.zeros(N, bool)
        for part, _ in literal.blocks:
            pooled[part], kept[part] = cases.unions(literal.mask[part], self.valid[part], size)
        self.close(f"pooled_{size}", literal.distance(literal.run(pooled), kept))

    def test_permuted(self):
        literal = self.literal
        mask = np.zeros_like(literal.mask)
        for key, (part, size) in zip(literal.keys(), literal.blocks, strict=True):
            padded = np.resize(part, size)
            here = np.arange(size) < len(part)
            counts = jnp.asarray(self.valid[padded] * here, jnp.float32)
            key = jax.random.fold_in(key, 2)
            moved = rows.permuted(jnp.asarray(literal.mask[padded]), counts, key)
            mask[part] = np.asarray(moved)[: len(part)]
        self.close("permuted", literal.distance(literal.run(mask)))

    @parameterized.parameters(*STEPS)
    @pytest.mark.slow
    def test_adversary_of_every_row(self, steps):
        r = self.literal.drawn(3, 0)
        self.close(f"adversarial_{steps}", self.literal.ascent(r, False)[steps])

    @parameterized.parameters(*STEPS)
    def test_shared_adversary(self, steps):
        key = jax.random.fold_in(randomness.stream(0, "evidence"), 2**31)
        r = np.asarray(jax.random.uniform(jax.random.fold_in(key, 0), (4,)))
        self.close(f"adversarial_shared_{steps}", self.literal.ascent(r, True)[steps])

    def test_size(self):
        mask = self.literal.mask[self.valid]
        self.close("l0", mask.sum(axis=1).mean())
        self.close("bits", np.mean([math.log2(math.comb(4, n)) for n in mask.sum(axis=1)]))
        own = ranks.ranks(
            ranks.singular_values(self.found.components),
            ranks.target_singular_values(self.found.target),
        )
        self.close("active_rank", (mask @ own).mean())
        self.assertEqual(self.evidence["always_on"], np.sum(mask.mean(axis=0) > 0.95))
        self.assertEqual(self.evidence.num_rows, len(mask))
        at_sites = sum(site.active_rank.value for site in self.evidence.sites)
        self.assertAlmostEqual(at_sites, self.evidence["active_rank"], places=6)

    def test_sites(self):
        target = self.found.target
        parts = networks.matrices(self.found.components)
        for site in self.evidence.sites:
            total = parts[site.name].sum(axis=0)
            outputs = networks.output(target, {site.name: total}, jnp.asarray(self.literal.x))
            value = self.literal.distance(np.asarray(outputs))
            np.testing.assert_allclose(site.replaced.value, value, rtol=1e-4)
            weight = np.asarray(target.weights[site.name])
            missing = np.sum((weight - np.asarray(total)) ** 2) / np.sum(weight**2)
            np.testing.assert_allclose(site.missing, missing, rtol=1e-4)
        missing = [site.missing for site in self.evidence.sites]
        self.close("faithfulness_mean", np.mean(missing))
        self.close("faithfulness_worst", np.max(missing))

    @parameterized.parameters("svd", "neurons")
    def test_terms_of_equal_rank(self, name):
        target, literal = self.found.target, self.literal
        terms = baselines.baseline(target, name)
        scores = np.asarray(networks.literal_attributions(target, terms, literal.x, "target"))
        k = min(self.evidence["active_rank"], scores.shape[1])
        mask = np.zeros(scores.shape, bool)
        for part, _ in literal.blocks:
            mask[part] = cases.own_masks(scores[part], self.valid[part], k)
        outputs = networks.literal_masked(target, terms, literal.x, mask)
        self.close(f"{name}_own", literal.distance(np.asarray(outputs)))

    def test_keys(self):
        stems = "own all random random_half adversarial_2 adversarial_3 adversarial_shared_2 "
        stems += "adversarial_shared_3 pooled_8 pooled_64 never_needed permuted zero l0 bits "
        stems += "active_rank"
        names = stems.split()
        for baseline in ("svd", "bundled", "neurons"):
            names += [f"{baseline}_{line}" for line in ("own", "random", "adversarial_2")]
        exact = ["alive", "always_on", "faithfulness_mean", "faithfulness_worst"]
        expected = {*names, *exact, *(f"{name}_se" for name in names)}
        found = self.evidence.to_dict()
        self.assertEqual(set(found), expected)
        self.assertTrue(all(isinstance(value, float | int) for value in found.values()))
        prefixed = self.evidence.to_dict(prefix="evidence_")
        self.assertEqual(prefixed["evidence_own_se"], found["own_se"])

    def test_tables(self):
        text, html = repr(self.evidence), self.evidence._repr_html_()
        for words in ("adversarial, one mask for all, 3 steps", "own mask", "first/w"):
            self.assertIn(words, text)
            self.assertIn(words, html)
        self.assertIn("all rows of the block are one group", text)

    def test_the_stated_cost_is_what_was_done(self):
        self.assertEqual((self.evidence.cost.blocks, self.evidence.cost.block_size), (2, 11))
        self.assertIn(f"{self.evidence.cost.passes} forward passes", str(self.evidence.cost))
        self.assertAlmostEqual(sum(self.evidence.cost.shares().values()), 1.0)
        self.assertEqual(self.done, self.evidence.cost.passes)

    @pytest.mark.slow
    def test_baselines_in_pieces_and_attacked_on_some_blocks(self):
        with (
            mock.patch.object(baseline_lines, "_MOST_ENTRIES", 4 * 7),
            mock.patch.object(cost, "ATTACKED_ROWS", 3),
        ):
            evidence, done = self.measured(baselines=("svd",))
        self.assertEqual(evidence.cost.attacked, 1)
        self.assertEqual(done, evidence.cost.passes)
        np.testing.assert_allclose(evidence["svd_own"], self.evidence["svd_own"], rtol=1e-4)
        self.assertIn("The adversary attacks svd on the first 1 of 2 blocks only.", evidence.notes)
        self.assertFalse([note for note in self.evidence.notes if "adversary" in note])


class TokensTest(absltest.TestCase):
    """Logits of every position, a mask a position, the KL divergence, and next tokens."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.found, cls.x = cases.tokens()
        cls.valid = np.arange(20).reshape(5, 4) % 7 != 2
        cls.evidence = cls.found.evidence(
            cls.x,
            "next_tokens",
            valid=lambda x: np.arange(x.size).reshape(x.shape) % 7 != 2,
            adversary_steps=(2,),
            draws=1,
            baselines=("svd",),
        )
        scores = np.asarray(cls.found.attributions(cls.x)).reshape(20, -1)
        cls.mask = cases.own_masks(scores, cls.valid.ravel(), 1.5).reshape(5, 4, -1)
        cls.target = np.asarray(cls.found.target(cls.x))

    def mean(self, mask, counts=None):
        counts = self.valid if counts is None else counts
        outputs = cases.literal_tokens(self.found.components, self.x, mask)
        return cases.divergence(outputs, self.target)[counts].mean()

    def close(self, name, value):
        np.testing.assert_allclose(self.evidence[name], value, rtol=2e-4)

    @pytest.mark.slow
    def test_distances(self):
        self.close("own", self.mean(self.mask))
        self.close("all", self.mean(np.ones(self.mask.shape)))
        self.close("zero", self.mean(np.zeros(self.mask.shape)))
        pooled, kept = cases.unions(self.mask.reshape(20, -1), self.valid.ravel(), 8)
        self.close("pooled_8", self.mean(pooled.reshape(self.mask.shape), kept.reshape(5, 4)))

    def key(self, stream):
        """Key of the only block's line."""
        return jax.random.fold_in(jax.random.fold_in(randomness.stream(0, "evidence"), 0), stream)

    @pytest.mark.slow
    def test_masks_of_positions(self):
        used = self.mask[self.valid].any(axis=0)
        self.close("never_needed", self.mean(np.broadcast_to(used, self.mask.shape)))
        for name, stream, draw in (("random", 0, jax.random.uniform), ("random_half", 1, halves)):
            r = draw(jax.random.fold_in(self.key(stream), 0), self.mask.shape)
            self.close(name, self.mean(np.where(self.mask, 1.0, r)))
        moved = rows.permuted(self.mask, self.valid.astype(np.float32), self.key(2))
        self.close("permuted", self.mean(moved))

    def test_one_site_at_a_time(self):
        parts = networks.matrices(self.found.components)
        for site in self.evidence.sites:
            weights = {site.name: parts[site.name].sum(axis=0)}
            outputs = self.found.target.with_weights(weights)(self.x)
            expected = cases.divergence(outputs, self.target)[self.valid].mean()
            np.testing.assert_allclose(site.replaced.value, expected, rtol=1e-3)

    @functools.cached_property
    def gradient(self):
        """A function of r [N, T, C]: the gradient of the sum of all errors, and the errors."""

        def total(r):
            mask = jnp.where(self.mask, 1.0, r)
            outputs = cases.literal_tokens(self.found.components, self.x, mask, jnp)
            errors = jnp.sum(cases.divergence(outputs, self.target) * self.valid, axis=1)
            return jnp.sum(errors), errors

        return jax.jit(jax.grad(total, has_aux=True))

    def ascent(self, r, shared):
        """Two steps for every position, or for one r of all of them."""
        best = np.full(1 if shared else len(self.x), -np.inf)
        for _ in range(3):
            gradient, errors = map(np.asarray, self.gradient(np.broadcast_to(r, self.mask.shape)))
            gradient = gradient.sum(axis=(0, 1)) if shared else gradient
            best = np.maximum(best, errors.sum(keepdims=True) if shared else errors)
            r = np.clip(r + 0.1 * np.sign(gradient), 0, 1)
        return best.sum() / self.valid.sum()

    @pytest.mark.slow
    def test_the_worst_masks(self):
        start = jax.random.uniform(jax.random.fold_in(self.key(3), 0), self.mask.shape)
        self.close("adversarial_2", self.ascent(start, False))
        key = jax.random.fold_in(randomness.stream(0, "evidence"), 2**31)
        start = jax.random.uniform(jax.random.fold_in(key, 0), (4,))
        self.close("adversarial_shared_2", self.ascent(start, True))

    @pytest.mark.slow
    def test_cross_entropy(self):
        def cross_entropy(outputs):
            losses = np.asarray(jax.nn.log_softmax(jnp.asarray(outputs)))
            return np.mean(
                [
                    -losses[n, t, int(self.x[n, t + 1])]
                    for n in range(5)
                    for t in range(3)
                    if self.valid[n, t] and self.valid[n, t + 1]
                ]
            )

        def run(mask):
            return cases.literal_tokens(self.found.components, self.x, mask)

        ones = np.ones(self.mask.shape)
        own, everything, none = (cross_entropy(run(m)) for m in (self.mask, ones, 0 * ones))
        target = cross_entropy(self.target)
        self.close("ce_target", target)
        self.close("ce_own", own)
        self.close("ce_all", everything)
        self.close("ce_recovered", (none - own) / (none - target))
        self.assertIn("ce_recovered_se", self.evidence.to_dict())

    def test_negative_labels_stand_for_no_class(self):
        labels = np.asarray(self.found.target(self.x)).argmax(-1)
        labels[:, ::2] = -1
        found = self.found.evidence(self.x, labels, adversary_steps=(1,), draws=1, baselines=())
        losses = -np.asarray(jax.nn.log_softmax(self.found.target(self.x)))
        kept = np.take_along_axis(losses, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
        np.testing.assert_allclose(found["ce_target"], kept[labels >= 0].mean(), rtol=1e-4)
        with self.assertRaisesRegex(apd_jax.UserError, "labels contain class 99"):
            self.found.evidence(self.x, np.full((5, 4), 99))
        for bad, message in (
            (np.full((5, 4), "yes"), "labels must be numbers.*<U3"),
            (np.zeros((5, 4)), "for classes give labels.astype"),
            (np.full(losses.shape, np.nan), "labels are NaN or infinite"),
        ):
            with self.assertRaisesRegex(apd_jax.UserError, message):
                self.found.evidence(self.x, bad)

    def test_what_the_training_does_not_count_is_left_out(self):
        valid = lambda x: x != 3  # noqa: E731
        objective = dataclasses.replace(self.found.objective, valid=valid)
        settings = dataclasses.replace(self.found.settings, objective=objective)
        found = dataclasses.replace(self.found, settings=settings)
        options = {"adversary_steps": (1,), "draws": 1, "baselines": ()}
        evidence = found.evidence(self.x, **options)
        self.assertEqual(evidence.num_rows, int(np.sum(np.asarray(self.x) != 3)))

    def test_what_does_not_count_changes_nothing(self):
        # A position that is left out is still read by later ones, a whole example is not.
        valid = np.ones((5, 4), bool)
        valid[3] = False
        moved = self.x.at[3].set((self.x[3] + 1) % 6)
        options = dict(valid=valid, adversary_steps=(2,), draws=1, baselines=())
        first, second = (self.found.evidence(x, **options).to_dict() for x in (self.x, moved))
        for name, value in first.items():
            np.testing.assert_allclose(second[name], value, rtol=1e-5, err_msg=name)


class PytreeTest(parameterized.TestCase):
    @pytest.mark.slow
    def test_every_line_of_outputs_in_several_arrays_is_that_of_one_array(self):
        def several(params, x):
            y = networks.mlp_apply(params, x)
            return {"a": y, "b": jnp.stack([y[:, 0], y[:, 1] ** 2, y[:, 0]], axis=1)}

        def one(params, x):
            return jnp.concatenate(jax.tree.leaves(several(params, x)), axis=1)

        x, options = networks.normal(5, 9, 3), dict(adversary_steps=(1,), draws=1)
        numbers = []
        for network in (several, one):
            target = apd_jax.Target(network, networks.mlp().params, inputs=x)
            found = cases.decomposition(target, networks.components(target), x)
            numbers.append(found.evidence(x, valid=np.arange(9) != 4, **options).to_dict())
        self.assertEqual(list(numbers[0]), list(numbers[1]))
        for name, value in numbers[0].items():
            np.testing.assert_allclose(value, numbers[1][name], rtol=1e-3, err_msg=name)

    @pytest.mark.slow
    def test_classes_of_a_single_logit(self):
        def logit(params, x):
            return networks.mlp_apply(params, x)[:, 0]

        x = networks.normal(5, 9, 3)
        target = apd_jax.Target(logit, networks.mlp().params, inputs=x)
        found = cases.decomposition(
            target, networks.components(target), x, minimality_loss="kl", batch_size=9
        )
        labels = np.arange(9) % 2
        evidence = found.evidence(x, labels, adversary_steps=(1,), draws=1, baselines=())
        sign = np.where(labels == 1, 1, -1)
        expected = np.mean(np.log1p(np.exp(-sign * np.asarray(target(x)))))
        np.testing.assert_allclose(evidence["ce_target"], expected, rtol=1e-5)

    @parameterized.product(kind=("mse", "kl"), dtype=(jnp.bfloat16, jnp.float16))
    def test_outputs_of_half_precision_are_compared_in_float32(self, kind, dtype):
        target = (100 * networks.normal(0, 8, 6)).astype(dtype)
        outputs = (target + 0.03 * networks.normal(1, 8, 6)).astype(dtype)
        counts, labels = np.ones(8, np.float32), np.arange(8, dtype=np.int32) % 6
        found, expected = (
            distance.compare(kind, ours, Examples(None, counts, labels, counts, theirs))
            for ours, theirs in (
                (outputs, target),
                (outputs.astype(jnp.float32), target.astype(jnp.float32)),
            )
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
            self.assertTrue(np.isfinite(one).all())


class RatioTest(absltest.TestCase):
    def test_a_mean_has_its_usual_standard_error(self):
        values = np.random.default_rng(0).normal(size=50)
        number = distance.ratio(values, np.ones(50))
        self.assertAlmostEqual(number.value, values.mean())
        self.assertAlmostEqual(number.se, values.std(ddof=1) / np.sqrt(50))

    def test_a_ratio_has_that_of_the_jackknife(self):
        rng = np.random.default_rng(1)
        unit = rng.uniform(1, 2, 400)
        error = unit * rng.uniform(0, 1, 400)
        left_out = (error.sum() - error) / (unit.sum() - unit)
        jackknife = np.sqrt(399 / 400 * np.sum((left_out - left_out.mean()) ** 2))
        np.testing.assert_allclose(distance.ratio(error, unit).se, jackknife, rtol=0.02)

    def test_groups_and_examples_that_do_not_count(self):
        error = np.array([1.0, 3.0, 2.0, 6.0, 0.0])
        unit = np.array([1.0, 1.0, 1.0, 1.0, 0.0])
        whole = distance.ratio(error, unit, np.array([0, 0, 1, 1, 2]))
        self.assertAlmostEqual(whole.se, distance.ratio([4.0, 8.0], [2.0, 2.0]).se)
        self.assertIsNone(distance.ratio([1.0, 0.0], [1.0, 0.0]).se)


class NothingTest(absltest.TestCase):
    def test_a_network_of_zeros_has_finite_evidence(self):
        target = networks.mlp()
        zeros = target.with_weights({s: jnp.zeros_like(w) for s, w in target.weights.items()})
        x = networks.normal(5, 8, 3)
        found = cases.decomposition(zeros, networks.components(target, 3, 2), x)
        evidence = found.evidence(x, adversary_steps=(1,), draws=1, baselines=())
        self.assertTrue(np.isfinite(list(evidence.to_dict().values())).all())
        self.assertEqual((evidence["active_rank"], evidence.network_rank), (0, 0))
        self.assertTrue(all(site.missing == 1 for site in evidence.sites))
        self.assertLess(max(verdict.value for verdict in evidence.verdicts), 1e6)

    def test_no_other_row_to_take_a_mask_of(self):
        target, x = networks.mlp(), networks.normal(5, 4, 3)
        found = cases.decomposition(target, networks.components(target, 3, 2), x, batch_size=2)
        options = {"adversary_steps": (1,), "draws": 1, "baselines": ()}
        with mock.patch.object(progress.Progress, "update") as update:
            alone = found.evidence(x, valid=[True, False, False, True], **options)
        self.assertEqual(update.call_args.args[0], alone.cost.passes)
        self.assertNotIn("permuted", alone.to_dict())
        self.assertNotIn("mask of another row", [verdict.name for verdict in alone.verdicts])
        self.assertIn("there is no other row", " ".join(alone.notes))
        # The block with a single row is left out of the line.
        both = found.evidence(x, valid=[True, True, True, False], **options)
        first = found.evidence(x[:2], **options)
        np.testing.assert_allclose(both["permuted"], first["permuted"], rtol=1e-5)

    def test_no_cross_entropy_to_recover(self):
        # The component changes nothing: with it and without it the cross entropy is the network's.
        target = networks.mlp()
        zeros = target.with_weights({s: jnp.zeros_like(w) for s, w in target.weights.items()})
        x = networks.normal(5, 8, 3)
        found = cases.decomposition(
            zeros, networks.components(target, 3, 2), x, minimality_loss="kl"
        )
        evidence = found.evidence(x, np.zeros(8, int), adversary_steps=(1,), draws=1, baselines=())
        self.assertNotIn("ce_recovered", evidence.to_dict())
        self.assertIn("ce_own", evidence.to_dict())
        self.assertIn("nothing to recover", " ".join(evidence.notes))


class RowsTest(absltest.TestCase):
    def test_permuted_masks_are_those_of_other_rows(self):
        mask = jnp.eye(9, dtype=bool)
        counts = jnp.asarray([1, 1, 0, 1, 1, 1, 0, 1, 1.0])
        for seed in range(5):
            moved = np.asarray(rows.permuted(mask, counts, jax.random.key(seed)))
            self.assertFalse(moved.diagonal().any())
            self.assertFalse(moved[[2, 6]].any())
            np.testing.assert_array_equal(moved.sum(axis=0), np.asarray(counts))

    def test_blocks_have_one_shape_and_hold_every_example_once(self):
        examples = Examples(np.arange(23), np.ones(23, np.float32))
        blocks = list(rows.blocks(examples, 5))
        self.assertLen({block.x.shape for block in blocks}, 1)
        kept = np.concatenate([block.x[block.counts > 0] for block in blocks])
        np.testing.assert_array_equal(kept, np.arange(23))

    def test_k_is_of_the_rows_that_count(self):
        scores = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 3)))
        block = Examples(jnp.zeros(6), jnp.asarray([1, 0, 1, 1, 0, 1.0]))
        mask = rows.select(apd_jax.Objective(topk=1.5), scores, block)
        expected = cases.own_masks(np.asarray(scores), np.asarray(block.counts), 1.5)
        np.testing.assert_array_equal(mask, expected)

    def test_of_equal_scores_those_of_lower_index_and_none_that_is_not_finite(self):
        scores = np.array([[1.0, 3.0, 1.0], [np.nan, 1.0, np.inf], [1.0, 0.0, 1.0]])
        block = Examples(np.zeros(3), np.ones(3, np.float32))
        expected = [[True, True, True], [False, True, False], [False, False, False]]
        np.testing.assert_array_equal(rows.largest(scores, 4 / 3, block), expected)
        np.testing.assert_array_equal(rows.largest(scores, 3.0, block), np.isfinite(scores))

    def test_baselines_have_as_many_pairs_as_the_mean_says(self):
        self.assertLess(29 / 100 * 100, 29)
        baseline = equal_rank.Baseline("svd", "svd", equal_rank.Parts({}), None, 29 / 100)
        block = Examples(np.zeros(100), np.ones(100, np.float32))
        scores = np.random.default_rng(0).uniform(size=(100, 3))
        self.assertEqual(baseline.choose(scores, block).sum(), 29)

    @pytest.mark.slow
    def test_masks_without_valid_are_those_of_the_decomposition(self):
        x = networks.normal(5, 12, 3)
        for fields in ({"topk": 1.3}, {"topk": 2, "selection": "sample"}, {"selection": "exact"}):
            target = networks.mlp()
            found = cases.decomposition(target, networks.components(target), x, **fields)
            block = Examples(x, jnp.ones(12))
            mask = rows.choose(found.objective, target, found.components, block)
            np.testing.assert_array_equal(mask, found.mask(x))
        distilled = dataclasses.replace(found.objective, distil=True, selection="batch")
        mask = rows.choose(distilled, target, found.components, block)
        self.assertTrue(np.asarray(mask)[:, -1].all())


class BundlesTest(absltest.TestCase):
    def test_terms_used_together_are_one_bundle(self):
        rng = np.random.default_rng(0)
        owner = rng.permutation(np.arange(20) % 4)
        used = rng.uniform(size=(200, 4)) * (rng.uniform(size=(200, 4)) < 0.3)
        scores = used[:, owner] * rng.uniform(1, 2, 20) + 1e-3 * rng.uniform(size=(200, 20))
        found = equal_rank.bundles(scores, 4)
        for bundle in range(4):
            self.assertLen(set(owner[found == bundle].tolist()), 1)
        self.assertEqual(set(found.tolist()), {0, 1, 2, 3})

    def test_rows_that_are_not_finite_are_left_out(self):
        scores = np.random.default_rng(0).uniform(size=(20, 8))
        for bad, width in ((np.nan, 8), (np.inf, 1)):
            broken = np.insert(scores, [0, 9], 1.0, axis=0)
            broken[[0, 10], :width] = bad
            found = equal_rank.bundles(broken, 3)
            np.testing.assert_array_equal(found, equal_rank.bundles(scores, 3))
            self.assertLen(set(found.tolist()), 3)

    def test_the_first_block_with_rows_of_use_decides(self):
        target = networks.mlp()
        x = networks.normal(5, 4, 3)
        found = cases.decomposition(target, networks.components(target, 4, 2), x)
        run = mock.Mock(baselines=("bundled",), target=target, objective=found.objective)
        run.adversary = adversary.Adversary((1,), 0.1, 1)
        scores = np.random.default_rng(0).uniform(size=(3, 4, 5))
        scores[0] = np.nan
        block = Examples(x, np.ones(4, np.float32))
        counts = [block, block, block._replace(counts=np.zeros(4, np.float32))]
        for order, used in (((0, 2, 1), 1), ((1, 2, 0), 1)):
            against = baseline_lines.Against(run, equal_rank.SizeToMatch(3, 2.0, 1.0))
            with (
                mock.patch.object(against, "_lines"),
                mock.patch.object(equal_rank, "term_scores") as term_scores,
            ):
                for place in order:
                    term_scores.return_value = {"svd": scores[place]}
                    against.add(place, counts[place])
            (made,) = against._made
            np.testing.assert_array_equal(made.bundle, equal_rank.bundles(scores[used], 3))


class RefusedTest(parameterized.TestCase):
    @parameterized.parameters(
        (dict(valid=np.ones(3)), r"valid must be true or false.*shape \(3,\)"),
        (dict(valid=np.zeros(9, bool)), "leaves no row that counts"),
        (dict(labels=np.zeros(4, int)), r"labels have shape \(4,\)"),
        (dict(labels="tokens"), "'next_tokens'"),
        (dict(adversary_steps=(20, 10)), "rising whole numbers"),
        (dict(adversary_step_size=0.0), "adversary_step_size"),
        (dict(adversary_starts=0), "adversary_starts"),
        (dict(draws=0), "draws"),
        (dict(baselines=("pca",)), "no baseline 'pca'"),
        (dict(baselines="pca"), "no baseline 'pca'"),
        (dict(baselines=3), "baselines must be a name, or several, got 3"),
        (dict(limits={"own": 1}), r"limits must be Limits, as in Limits\(own=0.2\), got {'own'"),
        (dict(valid=lambda: 1), r"valid must be a function of \(batch\)"),
        (dict(valid=lambda batch: batch["mask"]), "valid is called with a batch .* which fails"),
        (dict(valid=lambda batch: batch[:, 0]), "valid must give True or False .* got float32"),
        (dict(valid=[[1], [1, 2]]), "arrays of numbers, which this list is not"),
        (dict(seed=-1), "seed must be a whole number"),
        (dict(adversary_steps=0), "rising whole numbers"),
        (dict(adversary_steps=("a",)), "rising whole numbers"),
        (dict(draws=1.5), "draws must be a whole number"),
    )
    def test_refused(self, options, message):
        target, x = networks.mlp(), networks.normal(5, 9, 3)
        found = cases.decomposition(target, networks.components(target), x)
        with self.assertRaisesRegex(apd_jax.UserError, message):
            found.evidence(x, **options)

    def test_limits(self):
        with self.assertRaisesRegex(apd_jax.UserError, "limit own must be a number"):
            apd_jax.Limits(own=-1)
        for wrong in ("0.1", True, np.nan, fractions.Fraction(-1, 2), 1j, None, [0.1]):
            with self.assertRaisesRegex(apd_jax.UserError, "limit all must be a number"):
                apd_jax.Limits(all=wrong)
        self.assertEqual(apd_jax.Limits(own=np.float64(0.5), size=jnp.array(1.0)).own, 0.5)
        for half in (np.longdouble(0.5), fractions.Fraction(1, 2), decimal.Decimal("0.5")):
            limit = apd_jax.Limits(own=half).own
            self.assertEqual((type(limit), limit), (float, 0.5))
        self.assertEqual(apd_jax.Limits(own=np.inf).own, np.inf)

    def test_numbers_of_any_library(self):
        given = adversary.Adversary(np.array([2, 3]), np.float32(0.5), jnp.array(2))
        self.assertEqual(given, adversary.Adversary((2, 3), 0.5, 2))
        self.assertEqual(adversary.Adversary(jnp.array(2)).steps, (2,))
        self.assertTrue(all(type(n) is int for n in (*given.steps, given.starts)))

    @parameterized.parameters(np.nan, np.inf)
    def test_outputs_that_are_not_finite(self, bad):
        def network(params, x):
            return jnp.where(x[:, :1] > 50, bad, x @ params["w"])

        target = apd_jax.Target(network, {"w": networks.normal(0, 3, 2)})
        x = networks.normal(5, 9, 3).at[4:6].set(100.0)
        found = cases.decomposition(target, networks.components(target.at(x)), x)
        with self.assertRaisesRegex(apd_jax.UserError, "NaN or infinity on 2 of the 9 examples"):
            found.evidence(x, adversary_steps=(1,), draws=1)

    def test_outputs_that_are_all_zero(self):
        """They are refused before any component is run."""
        target = apd_jax.Target(
            lambda params, x: jax.nn.relu(jnp.tanh(x @ params["w"]) - 2),
            {"w": networks.normal(0, 3, 2)},
        )
        x = networks.normal(5, 9, 3)
        found = cases.decomposition(target, networks.components(target.at(x)), x)
        with (
            mock.patch.object(rows, "choose", side_effect=AssertionError("masks are chosen")),
            self.assertRaisesRegex(apd_jax.UserError, "outputs are 0 on all examples"),
        ):
            found.evidence(x, adversary_steps=(1,), draws=1)

    def test_outputs_that_are_zero_on_the_first_blocks(self):
        target = apd_jax.Target(
            lambda p, x: (x @ p["w"]) * x[:, 2:], {"w": networks.normal(0, 3, 2)}
        )
        x = networks.normal(5, 9, 3).at[:8, 2].set(0.0)
        found = cases.decomposition(target, networks.components(target.at(x)), x, batch_size=4)
        measured = found.evidence(x, adversary_steps=(1,), draws=1, baselines=())
        self.assertTrue(np.isfinite(measured["own"]))
        with self.assertRaisesRegex(apd_jax.UserError, "outputs are 0 on all examples"):
            found.evidence(x, adversary_steps=(1,), draws=1, valid=np.arange(9) < 8)

    def test_examples_that_do_not_count_may_hold_nan(self):
        target, x = networks.mlp(), networks.normal(5, 4, 3)
        found = cases.decomposition(target, networks.components(target, 3, 2), x, batch_size=4)
        options = dict(adversary_steps=(1,), draws=1, baselines=(), valid=[True, True, False, True])
        clean = found.evidence(x, **options).to_dict()
        broken = found.evidence(x.at[2].set(jnp.nan), **options).to_dict()
        self.assertEqual(list(clean), list(broken))
        for name, value in clean.items():
            np.testing.assert_allclose(broken[name], value, rtol=1e-5, err_msg=name)

    def test_a_baseline_that_is_named_twice_is_measured_once(self):
        target, x = networks.mlp(), networks.normal(5, 4, 3)
        found = cases.decomposition(target, networks.components(target, 3, 2), x)
        run, _ = lines.prepared(found, x, baselines=("svd", "neurons", "svd"))
        self.assertEqual(run.baselines, ("svd", "neurons"))

    def test_nothing_is_worse_than_no_number(self):
        target, x = networks.mlp(), networks.normal(5, 4, 3)
        components = jax.tree.map(lambda f: np.nan * f, networks.components(target))
        run, _ = lines.prepared(cases.decomposition(target, components, x), x, adversary_steps=(1,))
        masks = [np.zeros((4, 3), bool)] * len(list(run.blocks()))
        found = adversary.worst_shared(
            run.adversary,
            run.kind,
            target,
            components,
            lambda: zip(run.blocks(), masks, strict=True),
            run.key,
            lambda runs: None,
        )
        self.assertEqual(list(found), [1])


if __name__ == "__main__":
    absltest.main()
