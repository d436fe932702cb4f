"""A decomposed network: tables, summaries, examples, ablations, saved and loaded again."""

import dataclasses
import pathlib
import tempfile
import warnings
from typing import NamedTuple
from unittest import mock

import chex
import evidence_cases as cases
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.components import Factors, init_components
from apd_jax.evaluation import baselines, ranks, seen
from apd_jax.evaluation.curves import error_curves
from apd_jax.evaluation.labels import check_labels, cross_entropy_parts, quality_parts
from apd_jax.report import decomposition_page

X = networks.normal(5, 40, 3)


def untrained(target, x=X, num_components=3, rank=2, **fields):
    """A decomposition that was not trained."""
    fields = {"coefficients": apd_jax.Coefficients(minimality=1.0), "topk": 1.0} | fields
    settings = apd_jax.Settings(
        objective=apd_jax.Objective(**fields),
        num_components=num_components,
        steps=2,
        batch_size=8,
        rank=rank,
    )
    history = [{"step": 2, "loss/total": 0.5}]
    example = jax.tree.map(lambda leaf: leaf[:3], x)
    found = networks.components(target.at(x), num_components, rank)
    return apd_jax.Decomposition(target, found, settings, history, example)


def exact(**fields):
    """The target's own singular directions as components: a decomposition that is faithful."""
    target = networks.mlp()
    components = baselines.baseline(target, "svd")
    found = untrained(target, num_components=5, rank=1, **fields)
    return dataclasses.replace(found, components=components)


class TablesTest(parameterized.TestCase):
    def test_repr(self):
        lines = repr(untrained(networks.mlp())).splitlines()
        self.assertEqual(lines[0], "3 components at 2 sites, 2 of 2 steps, loss 0.5")
        self.assertRegex(lines[2], r"^first/w +3 x 5 +2 +\d")
        self.assertLen(lines, 4)

    def test_html(self):
        text = untrained(networks.mlp())._repr_html_()
        self.assertIn("<td>first/w</td><td>3 x 5</td><td>2</td>", text)


class NumbersTest(parameterized.TestCase):
    @parameterized.parameters(np.int64, np.uint8, jnp.int32)
    def test_numbers_of_components_of_other_libraries(self, kind):
        found = exact()
        np.testing.assert_array_equal(found.ablate(X, kind(1)), found.ablate(X, 1))
        best = found.top_examples(kind(1), X, count=kind(3)).examples
        np.testing.assert_array_equal(best, found.top_examples(1, X, count=3).examples)
        with self.assertRaisesRegex(apd_jax.UserError, r"component must .* \[0, 5\), got .*7"):
            found.top_examples(kind(7), X)

    def test_lists_of_several_lengths_are_no_components(self):
        message = r"component must .* got \[\[1\], \[1, 2\]\]"
        with self.assertRaisesRegex(apd_jax.UserError, message):
            exact().ablate(X, [[1], [1, 2]])

    @parameterized.parameters((np.array([True, False, True, False, False]),), (True,), (1.5,))
    def test_what_is_no_number_of_a_component(self, component):
        """A mask over components is none, either: True would be component 1."""
        with self.assertRaisesRegex(apd_jax.UserError, "component must be a whole number"):
            exact().ablate(X, component)
        with self.assertRaisesRegex(apd_jax.UserError, "component must be a whole number"):
            exact().edited({np.ravel(component)[0].item(): 0.0})

    @parameterized.parameters(([0, 1],), (3,), (np.zeros(5),))
    def test_scales_that_are_no_mapping(self, scales):
        with self.assertRaisesRegex(apd_jax.UserError, "scales must be a mapping"):
            exact().edited(scales)

    @parameterized.parameters(np.float32, np.float64, jnp.float32)
    def test_scales_of_other_libraries(self, kind):
        found = exact()
        chex.assert_trees_all_equal(found.edited({np.int64(1): kind(0.5)}), found.edited({1: 0.5}))
        chex.assert_trees_all_equal(found.edited({1: False}), found.edited({1: kind(0)}))
        for wrong in (kind(np.nan), np.ones(2), 1j, "2", 1e300, 10**400):
            with self.assertRaisesRegex(apd_jax.UserError, "component 1 must be scaled by"):
                found.edited({1: wrong})


class SummaryTest(parameterized.TestCase):
    def test_numbers_of_an_exact_decomposition(self):
        found = exact(topk=2.0)
        summary = found.summary(X)
        names = [row.name for row in summary.rows]
        ways = ["network", "active components", "all components", "no components"]
        self.assertEqual(names, [*ways, "svd", "neurons"])
        self.assertEqual((summary.network_rank, summary.ranks.tolist()), (5, [1] * 5))
        self.assertLess(max(summary.unfaithfulness.values()), 1e-6)
        self.assertLess(summary.row("all components").error, 1e-10)
        active = summary.row("active components")
        self.assertAlmostEqual(active.active_components, 2.0)
        masked = apd_jax.masked_apply(found.target, found.components, X[:8], found.mask(X[:8]))
        np.testing.assert_allclose(found(X[:8]), masked, rtol=1e-6)
        # The baseline of singular directions is this very decomposition.
        self.assertAlmostEqual(summary.row("svd").error, active.error, places=5)
        share = summary.active_share
        self.assertAlmostEqual(share.sum(), 2.0)
        self.assertEqual(summary.dead, np.flatnonzero(share == 0).tolist())
        self.assertIn("active components", repr(summary))
        self.assertIn("<td>active components</td>", summary._repr_html_())

    def test_baselines_have_the_active_rank_also_where_it_is_below_one(self):
        found = exact(topk=0.375)
        summary = found.summary(X)
        active, svd, neurons = (summary.row(n) for n in ("active components", "svd", "neurons"))
        for row in (active, svd, neurons):
            self.assertAlmostEqual(row.active_rank, 0.375)
        self.assertAlmostEqual(svd.error, active.error, places=5)
        curve = error_curves(found, X, found.see(X), summary)
        np.testing.assert_allclose(curve["svd"].k, curve["components"].k)

    def test_labels(self):
        found = exact()
        outputs = np.asarray(found.target(X))
        summary = found.summary(X, outputs.argmax(axis=1), baselines=())
        self.assertEqual(summary.quality_name, "accuracy")
        self.assertEqual(summary.row("network").quality, 1.0)
        self.assertLen(summary.rows, 4)
        values = found.summary(X, outputs + 1.0, baselines=("svd",))
        self.assertAlmostEqual(values.row("network").quality, 1.0, places=5)
        for bad in ({0, 1}, (0 for _ in X), {0: 1}.values(), map(int, "01")):
            with self.assertRaisesRegex(apd_jax.UserError, "labels: expected an array.*give an ar"):
                found.summary(X, bad)

    @pytest.mark.slow
    def test_classes_of_one_logit_without_an_axis_of_its_own(self):
        def logit(params, x):
            return networks.mlp_apply(params, x)[:, 0]

        found = untrained(apd_jax.Target(logit, networks.mlp().params), minimality_loss="kl")
        labels = np.asarray(found.target(X) > 0, int)
        labels[:10] = 1 - labels[:10]
        self.assertAlmostEqual(found.summary(X, labels).row("network").quality, 0.75)
        with self.assertRaisesRegex(apd_jax.UserError, r"whole numbers \(40,\) for classes"):
            found.summary(X, labels[:3])
        with self.assertRaisesRegex(apd_jax.UserError, "labels are -1 and .1, .* use 0 and 1"):
            found.summary(X, 2 * labels - 1)

    @parameterized.parameters(-100, -1)
    def test_negative_labels_are_ignored_and_counted(self, padding):
        found = exact()
        labels = np.array(found.target(X)).argmax(axis=1)
        labels[:20] = padding
        summary = found.summary(X, labels, baselines=())
        self.assertEqual(summary.network.quality, 1.0)
        self.assertIn("20 of 40 labels are negative and ignored.", repr(summary))

    @parameterized.parameters(
        (lambda classes: classes + 1, "contain class 2, but the outputs have 2 classes"),
        (lambda classes: 0 * classes - 100, "all 40 labels are negative"),
        (lambda classes: np.where(classes, np.nan, classes), "20 of 40 labels are NaN or infinite"),
        (lambda classes: classes.astype(str), "labels must be numbers, classes or values, got <U"),
        (lambda classes: classes.astype(object), "got object: number the classes"),
        (lambda classes: {"y": classes}, r"must be one array, got a dict of \['y'\]"),
        (lambda classes: classes.astype("f4"), r"type float32;.*give labels.astype\(int\)"),
        (lambda classes: classes[:, None], r"give labels\[..., 0\]"),
        (lambda classes: np.eye(2, dtype=bool)[classes], r"one-hot form give labels.argmax\(-1\)"),
        (lambda classes: np.ma.masked_equal(classes + 0.5, 0.5), "labels: .* a masked array"),
    )
    def test_labels_that_are_no_class_are_refused(self, change, message):
        found = exact()
        labels = np.arange(40) % 2
        with self.assertRaisesRegex(apd_jax.UserError, message):
            found.summary(X, change(labels), baselines=())

    def test_masked_labels_are_ignored(self):
        found = exact()
        labels = np.array(found.target(X)).argmax(axis=1)
        wrong = np.ma.masked_array(np.where(np.arange(40) < 20, 1 - labels, labels), mask=False)
        wrong[:20] = np.ma.masked
        for classes in (wrong, wrong.astype(np.uint8)):
            summary = found.summary(X, classes, baselines=())
            self.assertEqual(summary.network.quality, 1.0)
            self.assertIn("20 of 40 labels are negative and ignored.", repr(summary))

    def test_true_and_false_are_no_classes_among_many(self):
        with self.assertRaisesRegex(apd_jax.UserError, "True and False, .* 3 classes"):
            check_labels(np.ones(4, bool), (4, 3))
        check_labels(np.ones(4, bool), (4, 2))

    def test_the_largest_number_of_64_bits_is_no_negative_class(self):
        values, labels = np.eye(3), np.array([0, 1, 2**64 - 1], np.uint64)
        with self.assertRaisesRegex(apd_jax.UserError, "contain class 18446744073709551615"):
            check_labels(labels, values.shape)

    def test_one_logit_knows_two_classes(self):
        values = np.array([[-1.0], [2.0], [3.0]])
        self.assertEqual(quality_parts(values, np.array([0, 1, -1])), (2, 2))
        self.assertEqual(quality_parts(values, np.array([False, True, False])), (2, 3))
        with self.assertRaisesRegex(apd_jax.UserError, "contain class 2"):
            check_labels(np.array([1, 2, 2]), values.shape)

    def test_scores_that_are_not_finite_are_said(self):
        found = exact()
        broken = X.at[3].set(jnp.nan)
        summary = found.summary(broken, baselines=())
        self.assertIn("attributions on 1 of 40 rows are NaN or infinite", repr(summary))
        np.testing.assert_array_equal(found.see(broken).mask[3], False)

    def test_one_baseline_by_its_name(self):
        self.assertEqual(exact().summary(X, baselines="svd").rows[-1].name, "svd")
        self.assertEqual(exact().summary(X, baselines=None).rows[-1].name, "no components")

    @parameterized.named_parameters(
        ("nothing", None, "path of the page must be a str .* got a NoneType"),
        ("swapped", X, "path of the page must be a str"),
        ("directory", "", "is a directory: give the path of the page, .*report.html"),
        ("below_a_file", "file/report.html", "page can't be written to .*report.html"),
    )
    def test_paths_of_a_report_are_checked_first(self, path, message):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        (folder / "file").touch()
        path = folder / path if isinstance(path, str) else path
        with (
            mock.patch.object(decomposition_page, "render", side_effect=AssertionError),
            self.assertRaisesRegex(apd_jax.UserError, message),
        ):
            exact().report(path, X)

    def test_no_examples(self):
        found = exact()
        for method in (found, found.mask, found.attributions, found.summary):
            with self.assertRaisesRegex(apd_jax.UserError, "the batch is empty"):
                method(X[:0])

    @parameterized.parameters(
        ({"labels": np.zeros(3, int)}, r"labels have shape \(3,\)"),
        ({"baselines": ("pca",)}, "no baseline 'pca'"),
        ({"baselines": 3}, "baselines must be a name, or several, got 3"),
        ({"baselines": ["svd", 3]}, r"baselines must be a name, or several, got \['svd', 3\]"),
        ({"other": X}, "other= is measured of a targeted decomposition"),
    )
    def test_refused(self, options, message):
        # Labels are compared with the outputs of the first block.
        effect = None if "labels" in options else AssertionError("examples are run")
        with (
            mock.patch.object(seen, "look", side_effect=effect, wraps=seen.look),
            self.assertRaisesRegex(apd_jax.UserError, message),
        ):
            exact().summary(X, **options)

    def test_a_component_that_is_always_on_is_said_to_be_trivial(self):
        found = exact(topk=1.0)
        big = {
            name: Factors(f.reads.at[2].mul(1e4), f.writes) for name, f in found.components.items()
        }
        summary = dataclasses.replace(found, components=big).summary(X, baselines=())
        self.assertEqual(summary.always_on, [2])
        self.assertTrue(summary.trivial)
        self.assertIn("Trivial: component 2 is active on more than 95%", repr(summary))

    def test_an_active_rank_near_that_of_the_network_is_trivial(self):
        summary = exact(topk=4.0).summary(X, baselines=())
        self.assertRegex(summary.remarks[-1], "Trivial: .* rank 4.0 .* network's 5")
        self.assertEqual([finding.kind for finding in summary.findings], ["trivial"])

    def test_few_active_components_are_not_trivial(self):
        self.assertFalse(exact(topk=1.5).summary(X, baselines=()).trivial)

    @parameterized.parameters("svd", "neurons")
    def test_baselines_add_up(self, name):
        target = networks.tms(hidden_layers=1)
        components = baselines.baseline(target, name)
        for site, missing in ranks.unfaithfulness(target, components).items():
            self.assertLess(missing, 1e-10, site)

    @pytest.mark.slow
    def test_baselines_of_stacked_blocks(self):
        def network(params, x):
            return jnp.einsum("bi,gio->bgo", x, params["w"]).reshape(len(x), -1)

        def blocks(params, x):
            return jnp.einsum("bgi,gio->bgo", x.reshape(len(x), 2, 3), params["w"])

        for apply_fn, width in ((network, 3), (blocks, 6)):
            target = apd_jax.Target(apply_fn, {"w": networks.normal(0, 2, 3, 4)})
            target.at(jnp.ones((2, width)))
            for name in baselines.BASELINES:
                components = baselines.baseline(target, name)
                missing = ranks.unfaithfulness(target, components)
                self.assertLess(missing["w"], 1e-10)


def adapted_apply(params, x):
    """A layer beside a low-rank adapter."""
    hidden = jnp.tanh(x @ params["w"] + x @ params["A"] @ params["B"])
    return jnp.einsum("bh,gho->bgo", hidden, params["heads"]).reshape(len(x), -1)


def adapted(**zeros):
    """The adapter as it is before training, B = 0, and a block of heads that is fresh."""
    heads = networks.normal(3, 2, 5, 2).at[1].set(0)
    shapes = {"w": (3, 5), "A": (3, 2), "B": (2, 5)}
    params = {name: networks.normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    params |= {"B": jnp.zeros((2, 5)), "heads": heads} | zeros
    return apd_jax.Target(adapted_apply, params, inputs=X)


class EmptySiteTest(absltest.TestCase):
    """Sites whose weights are all zero, and blocks of zeros within a site."""

    def found(self, target, scale=1.0):
        components = init_components(jax.random.key(0), target, num_components=6, rank=1)
        components |= {"B": jax.tree.map(lambda leaf: scale * leaf, components["B"])}
        return dataclasses.replace(untrained(networks.mlp()), target=target, components=components)

    @pytest.mark.slow
    def test_an_empty_site_has_no_rank_and_is_said_to_hold_nothing(self):
        target = adapted()
        summaries = [self.found(target, scale).summary(X) for scale in (1e-4, 1.0)]
        for summary in summaries:
            self.assertEqual(summary.empty_sites, ("B",))
            self.assertEqual(summary.network_rank, 3 + 2 + 2)
            self.assertTrue(np.isfinite(list(summary.unfaithfulness.values())).all())
            self.assertIn("All weights of the site B are zero", repr(summary))
            self.assertNotIn("of B, the worst site", repr(summary))
        np.testing.assert_array_equal(summaries[0].ranks, summaries[1].ranks)
        self.assertLessEqual(summaries[0].ranks.max(), 4)  # of w, A and two blocks of heads
        self.assertRegex(repr(self.found(target)), "B +2 x 5 +1 +all zero")

    @pytest.mark.slow
    def test_report(self):
        everywhere = jax.tree.map(jnp.zeros_like, adapted().params)
        for target in (adapted(), adapted(**everywhere)):
            found = self.found(target)
            text, panels = decomposition_page.render(found, X, None)
            self.assertIn("All weights of the site B are zero", text)
            self.assertIn("faithfulness", [panel.name for panel in panels])
            words, _, _ = text.partition('<section id="figures">')
            self.assertNotRegex(words, r"\de\+2\d\d")
            found.plot(0)

    @pytest.mark.slow
    def test_weights_too_small_for_squares_in_float32_are_none(self):
        target = adapted(B=jnp.full_like(adapted().params["B"], 1e-30))
        summary = self.found(target, 0.1).summary(X)
        self.assertEqual(summary.empty_sites, ("B",))
        self.assertLess(max(summary.unfaithfulness.values()), 1e6)
        np.testing.assert_array_equal(summary.ranks, self.found(adapted()).summary(X).ranks)

    @pytest.mark.slow
    def test_all_sites_empty(self):
        target = adapted(**jax.tree.map(jnp.zeros_like, adapted().params))
        summary = self.found(target).summary(X)
        self.assertEqual((summary.network_rank, summary.active.active_rank), (0, 0.0))
        self.assertFalse(summary.trivial)
        self.assertLen(summary.empty_sites, 4)
        self.assertIn("always on", repr(summary).lower())


class CrossEntropyTest(absltest.TestCase):
    @pytest.mark.slow
    def test_next_tokens(self):
        found, x = cases.tokens()
        summary = found.summary(x, "next_tokens")

        def cross_entropy(outputs):
            losses = [
                np.log(np.exp(outputs[n, t]).sum()) - outputs[n, t, int(x[n, t + 1])]
                for n in range(len(x))
                for t in range(x.shape[1] - 1)
            ]
            return np.mean(losses)

        ones = np.ones((*x.shape, 4))
        network = cross_entropy(np.asarray(found.target(x), np.float64))
        everything, nothing = (
            cross_entropy(cases.literal_tokens(found.components, x, mask))
            for mask in (ones, 0 * ones)
        )
        own = cross_entropy(cases.literal_tokens(found.components, x, found.mask(x)))
        for row, value in zip(summary.rows, (network, own, everything, nothing), strict=False):
            np.testing.assert_allclose(row.cross_entropy, value, rtol=1e-4)
        recovered = (nothing - own) / (nothing - network)
        np.testing.assert_allclose(summary.cross_entropy_recovered, recovered, rtol=1e-3)
        held = summary.to_dict()["cross_entropy_recovered"]
        self.assertEqual(held, summary.cross_entropy_recovered)
        self.assertIn("of the cross entropy", repr(summary))
        self.assertEqual(summary.quality_name, "accuracy")

    @pytest.mark.slow
    def test_a_label_of_probability_0_is_named(self):
        def apply(params, x):
            return jnp.where(jnp.arange(2) == 1, -jnp.inf, networks.mlp_apply(params, x))

        target = apd_jax.Target(apply, networks.mlp().params, inputs=X)
        found = untrained(target, minimality_loss="kl")
        options = {"adversary_steps": 1, "draws": 1, "baselines": ()}
        for label, told in ((0, False), (1, True)):
            labels = np.zeros(len(X), int)
            labels[3] = label
            summary = found.summary(X, labels)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                evidence = found.evidence(X, labels, **options)
            for text in (repr(summary), repr(evidence)):
                self.assertEqual("classes of probability 0" in text, told)
                self.assertNotIn("nan", text)
            self.assertIsNone(summary.cross_entropy_recovered)  # without any component it is 0 too
            self.assertEqual(np.isinf(evidence["ce_target"]), told)
            self.assertNotIn("ce_recovered", evidence.numbers)

    @pytest.mark.slow
    def test_a_network_worse_than_no_component_has_nothing_to_recover(self):
        found = untrained(networks.mlp(), minimality_loss="kl")
        right = np.asarray(found.target(X)).argmax(axis=1)
        options = {"adversary_steps": 1, "draws": 1, "baselines": ()}
        for labels, told in ((right, False), (1 - right, True)):
            texts = repr(found.summary(X, labels)), repr(found.evidence(X, labels, **options))
            self.assertEqual([t.count("nothing to recover") for t in texts], [told] * 2)
            self.assertEqual(texts[0].count("of the cross entropy"), not told)

    def test_one_logit_and_labels_that_are_ignored(self):
        outputs = np.array([2.0, -1.0, 5.0])
        total, count = cross_entropy_parts(outputs, np.array([1, 1, -1]))
        expected = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(1.0))
        self.assertEqual(count, 2)
        self.assertAlmostEqual(total, expected)

    def test_values_have_none(self):
        found = untrained(networks.mlp())
        summary = found.summary(X, np.asarray(found.target(X)))
        self.assertIsNone(summary.network.cross_entropy)
        self.assertIsNone(summary.cross_entropy_recovered)
        with self.assertRaisesRegex(apd_jax.UserError, "must be tokens"):
            found.summary(X, "next_tokens")


class ExamplesTest(parameterized.TestCase):
    def test_top_examples(self):
        found = untrained(networks.mlp())
        top = found.top_examples(1, X, count=4)
        scores = np.concatenate([found.attributions(X[i : i + 8]) for i in range(0, 40, 8)])
        total = [sum(a * a for a in row) for row in scores.tolist()]
        shares = [
            row[1] ** 2 / (t + np.median(total)) for row, t in zip(scores, total, strict=True)
        ]
        np.testing.assert_array_equal(top.examples, np.argsort(-np.array(shares))[:4])
        np.testing.assert_allclose(top.shares, sorted(shares)[::-1][:4], rtol=1e-5)
        np.testing.assert_allclose(top.scores, scores[top.examples, 1], rtol=1e-5)
        self.assertIsNone(top.positions)
        self.assertEqual(top.active.dtype, bool)

    def test_ablate(self):
        found = untrained(networks.mlp())
        matrices = networks.matrices(found.components)
        for removed, kept in ((1, [0, 2]), ([0, 2], [1])):
            rest = {name: sum(parts[c] for c in kept) for name, parts in matrices.items()}
            np.testing.assert_allclose(
                found.ablate(X, removed), networks.output(found.target, rest, X), rtol=1e-4
            )

    @parameterized.parameters(-1, 3, 1.0, "1")
    def test_no_such_component(self, number):
        found = untrained(networks.mlp())
        for method in (found.plot, lambda c: found.top_examples(c, X)):
            with self.assertRaisesRegex(apd_jax.UserError, r"whole number in \[0, 3\)"):
                method(number)

    @parameterized.parameters((-2, "count must be at least 1"), (1.5, "count must be a whole"))
    def test_no_such_count(self, count, message):
        with self.assertRaisesRegex(apd_jax.UserError, message):
            untrained(networks.mlp()).top_examples(0, X, count=count)

    def test_plot(self):
        figure = untrained(networks.mlp()).plot(2)
        self.assertEqual([axes.get_title() for axes in figure.axes[:2]], ["first/w", "second/w"])

    def test_positions(self):
        def network(params, x):
            return jnp.tanh(x @ params["a"]) @ params["b"]

        params = {"a": networks.normal(0, 3, 4), "b": networks.normal(1, 4, 2)}
        x = networks.normal(2, 16, 5, 3)
        found = untrained(apd_jax.Target(network, params), x, per_position=True)
        self.assertEqual(found.mask(x[:8]).shape, (8, 5, 3))
        top = found.top_examples(0, x, count=3)
        whole = np.concatenate([found.attributions(x[i : i + 8]) for i in (0, 8)])[..., 0]
        np.testing.assert_allclose(top.scores, whole[top.examples, top.positions], rtol=1e-5)
        labels = np.asarray(found.target(x)).argmax(-1)
        self.assertEqual(found.summary(x, labels).row("network").quality, 1.0)


class Layer(NamedTuple):
    w: jax.Array
    b: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Record:
    layers: list


def of_layers(layers, x):
    for layer in layers:
        x = jnp.tanh(x @ layer[0] + layer[1])
    return x


LAYERS = [(networks.normal(i, 3, 3), networks.normal(i + 9, 3)) for i in (0, 1)]
TREES = {
    "list_of_tuples": (LAYERS, of_layers),
    "tuple_of_lists": (tuple(list(layer) for layer in LAYERS), of_layers),
    "named_tuples": ([Layer(*layer) for layer in LAYERS], of_layers),
    "dataclass": (Record([Layer(*layer) for layer in LAYERS]), lambda p, x: of_layers(p.layers, x)),
    "whole_keys": (
        {1: LAYERS[0], 10: LAYERS[1], 2: None},
        lambda p, x: of_layers([p[1], p[10]], x),
    ),
}


class SaveTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.directory = root / "saved"

    @parameterized.parameters(*TREES)
    @pytest.mark.slow
    def test_types_of_parameters_come_back(self, name):
        params, network = TREES[name]
        found = untrained(apd_jax.Target(network, params))
        found.save(self.directory)
        code = name in ("named_tuples", "dataclass")
        if code:
            with self.assertRaisesRegex(apd_jax.UserError, "which is code and was not saved"):
                apd_jax.load(self.directory, network)
        like = jax.tree.map(jnp.zeros_like, params)
        given = [(network, {"params": like} if code else {}), (apd_jax.Target(network, like), {})]
        for what, options in given:
            loaded = apd_jax.load(self.directory, what, **options)
            chex.assert_trees_all_equal(loaded.target.params, params)
            self.assertEqual(list(loaded.components), list(found.components))
            np.testing.assert_array_equal(loaded(X), found(X))

    def test_a_network_that_computes_something_else_is_refused(self):
        params, network = TREES["list_of_tuples"]
        untrained(apd_jax.Target(network, params)).save(self.directory)
        with self.assertRaisesRegex(apd_jax.UserError, "does not compute what"):
            apd_jax.load(self.directory, lambda p, x: jnp.sin(network(p, x)))
        with self.assertRaisesRegex(apd_jax.UserError, "does not compute what"):
            apd_jax.load(self.directory, lambda p, x: network(p, x)[:, :2])
        with self.assertRaisesRegex(apd_jax.UserError, "differ from the saved ones"):
            apd_jax.load(self.directory, network, params=params[:1])

    def test_inputs_of_a_type_of_ones_own_need_inputs_to_be_checked(self):
        def network(params, x):
            return networks.mlp_apply(params, x.w) + x.b

        def other(params, x):
            return networks.mlp_apply(params, x.w) - x.b

        x = Layer(X, X[:, :2])
        found = untrained(apd_jax.Target(network, networks.mlp().params), x)
        found.save(self.directory)
        for what in (network, other, found.target):
            with self.assertRaisesRegex(apd_jax.UserError, r"kept in a Layer, .*inputs=x"):
                apd_jax.load(self.directory, what)
        like = jax.tree.map(jnp.zeros_like, x)
        loaded = apd_jax.load(self.directory, network, inputs=like)
        np.testing.assert_array_equal(loaded(x), found(x))
        np.testing.assert_array_equal(loaded.example.b, x.b[:3])
        with self.assertRaisesRegex(apd_jax.UserError, "does not compute what"):
            apd_jax.load(self.directory, other, inputs=like)
        with self.assertRaisesRegex(apd_jax.UserError, "of 2 arrays; got"):
            apd_jax.load(self.directory, network, inputs=X)

    def test_variables_are_no_network(self):
        with self.assertRaisesRegex(apd_jax.UserError, "needs the network itself.*got a dict"):
            apd_jax.load(self.directory, {"params": networks.mlp().params})

    def test_functions_among_the_settings(self):
        def size(outputs):
            return jnp.sum(outputs**2, axis=-1, keepdims=True)

        found = untrained(networks.mlp(), metric=size)
        found.save(self.directory)
        for given in ({}, {"metric": None}):
            with self.assertRaisesRegex(
                apd_jax.UserError, r"metric=.*size, a function .*metric=\.\.\."
            ):
                apd_jax.load(self.directory, networks.mlp_apply, **given)
        loaded = apd_jax.load(self.directory, networks.mlp_apply, metric=size)
        self.assertEqual(loaded.settings, found.settings)
        with self.assertRaisesRegex(apd_jax.UserError, "'topk' was not a function"):
            apd_jax.load(self.directory, networks.mlp_apply, metric=size, topk=size)

    def test_bfloat16_and_integer_leaves(self):
        def network(params, x):
            return x @ params["w"].astype(jnp.float32) + params["n"]

        params = {"w": networks.normal(0, 3, 2).astype(jnp.bfloat16), "n": jnp.arange(2)}
        untrained(apd_jax.Target(network, params)).save(self.directory)
        loaded = apd_jax.load(self.directory, network)
        chex.assert_trees_all_equal(loaded.target.params, params)


if __name__ == "__main__":
    absltest.main()
