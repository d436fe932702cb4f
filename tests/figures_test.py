"""Figures: made for every shape, of the right size, with no text over another, no state left."""

import struct
import types

import handmade
import matplotlib
import numpy as np
import pytest
import report_example
from absl.testing import absltest, parameterized
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from networks import components

import apd_jax
from apd_jax.plotting import decomposition_figures, networks, style
from apd_jax.studies.reconstruction import LabelErrors
from apd_jax.studies.resid_mlp import captions as resid_mlp_captions
from apd_jax.studies.resid_mlp import figures as resid_mlp
from apd_jax.studies.resid_mlp import figures_contributions as contributions
from apd_jax.studies.resid_mlp import figures_scrubbing as scrubbing
from apd_jax.studies.resid_mlp.contributions import Contributions, semantic_counts
from apd_jax.studies.resid_mlp.measures import ResidualMLPArrays
from apd_jax.studies.resid_mlp.scrubbing import ScrubbingSamples, per_feature
from apd_jax.studies.resid_mlp.single_features import AblationResponse, FeatureSweeps
from apd_jax.studies.resid_mlp.study import STUDY as RESID_MLP
from apd_jax.studies.tms import captions as tms_captions
from apd_jax.studies.tms import figures as tms
from apd_jax.studies.tms import measures as tms_evaluation
from apd_jax.studies.tms.study import STUDY as TMS


def label_errors(groups: int) -> LabelErrors:
    values = np.linspace(1e-3, 1e-2, groups)
    return LabelErrors(np.arange(groups), values, 1.1 * values, 2 * values)


def tms_arrays(
    features: int, width: int, count: int, layers: int = 0, *, shares=None
) -> tms_evaluation.TMSArrays:
    """Arrays of a TMS; component c holds feature c unless told otherwise, with some noise."""
    rng = np.random.default_rng(0)
    angles = 2 * np.pi * np.arange(features) / features + 0.3
    weight = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if width != 2:
        weight = rng.normal(size=(features, width)) / np.sqrt(width)
    shares = np.eye(count, features) * 0.9 if shares is None else shares
    components = handmade.row_components(weight, shares)
    components = components + 0.002 * rng.normal(size=components.shape)
    hidden = np.broadcast_to(np.eye(width), (layers, width, width))
    cosines, ratios = tms_evaluation.row_similarity(weight, components)
    _, best, recovered = tms_evaluation.superposition_scores(cosines, ratios)
    return tms_evaluation.TMSArrays(
        target=weight,
        components=components,
        hidden=hidden,
        hidden_components=np.broadcast_to(hidden / count, (count, layers, width, width)),
        cosines=cosines,
        norm_ratios=ratios,
        best_component=best,
        recovered=recovered,
        shares=cosines * ratios,
        order=tms_evaluation.component_order(best, num_components=count),
        label_errors=label_errors(1 + min(4, features)),
    )


def contribution_arrays(rng, features: int, neurons: tuple[int, ...], count: int) -> Contributions:
    """Contributions of about one neuron in eight above 0.1."""
    total = sum(neurons)
    target = 0.01 * rng.normal(size=(features, total))
    target += rng.uniform(0.05, 0.5, target.shape) * (rng.random(target.shape) < 0.13)
    components = np.zeros((count, features, total))
    best = np.arange(features) % count
    components[best, np.arange(features)] = 0.95 * target
    return Contributions(
        target=target,
        components=components,
        layer=np.repeat(np.arange(len(neurons)), neurons),
        represents=components.max(axis=-1) > 0.04,
        best_component=best,
    )


def sample_arrays(rng, features: int, size: int) -> ScrubbingSamples:
    counts = rng.integers(0, 3, size)
    errors = {
        name: scale * rng.lognormal(size=size) * counts
        for name, scale in zip(
            ScrubbingSamples._fields[3:], (1, 2, 9, 4, 7, 9, 5, 6, 6), strict=True
        )
    }
    return ScrubbingSamples(
        num_active=counts,
        feature=rng.integers(0, features, size),
        components_active=counts,
        **{name: 1e-4 * values for name, values in errors.items()},
    )


def resid_mlp_arrays(features: int, neurons: tuple[int, ...], count: int):
    """Numbers and arrays of a residual MLP; with few features some of them have no samples."""
    rng = np.random.default_rng(0)
    inputs = np.linspace(-1, 1, 11)
    labels = np.tile(inputs + np.maximum(inputs, 0), (features, 1))
    outputs = 2 * np.eye(features) + 0.05 * rng.normal(size=(features, features))
    errors = rng.uniform(1e-5, 1e-3, features)
    noise = 0.05 * rng.normal(size=features)
    feature = min(42, features - 1)
    samples = sample_arrays(rng, features, 10 * features)
    arrays = ResidualMLPArrays(
        feature_map=np.arange(features) % count,
        contributions=contribution_arrays(rng, features, neurons, count),
        sweeps=FeatureSweeps(
            inputs=inputs,
            target=0.9 * labels,
            component=0.8 * labels,
            labels=labels,
            one_hot_outputs=0.9 * outputs,
            one_hot_labels=2 * np.eye(features),
            component_mse=errors,
            no_component_mse=np.full(features, 5e-3),
            top1_mse=errors,
            top2_mse=errors,
            held=errors < 5e-4,
            held_by_two=errors < 5e-4,
        ),
        samples=samples,
        per_feature=per_feature(samples, num_features=features),
        ablation=AblationResponse(
            feature=feature,
            target=outputs[feature] / 2,
            scrubbed_mean=outputs[feature] / 2,
            scrubbed_std=np.abs(noise),
            antiscrubbed_mean=noise,
            antiscrubbed_std=np.abs(noise),
        ),
        label_errors=label_errors(1 + min(5, features)),
    )
    means = {
        f"{name}_mse": float(getattr(samples, name).mean())
        for name in ("topk", "scrubbed", "antiscrubbed", "monosemantic")
    }
    return means | semantic_counts(arrays.contributions.represents), arrays


def text_boxes(figure: Figure) -> list[tuple[str, object]]:
    """What is written on a figure and where, in pixels; placing it needs no drawing."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    left_out = {id(label) for axes in figure.axes for label in _labels_out_of_view(axes)}
    return [
        (text.get_text(), text.get_window_extent(renderer))
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in left_out
    ]


def _labels_out_of_view(axes):
    """Labels of ticks outside of the axis, which matplotlib keeps but does not draw."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        room = 1e-9 * (high - low)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low - room <= tick.get_loc() <= high + room:
                yield from (tick.label1, tick.label2)


def resid_mlp_figures(*sizes):
    numbers, arrays = resid_mlp_arrays(*sizes)
    return RESID_MLP.draw(numbers, arrays)


class FiguresTest(parameterized.TestCase):
    def check(self, figure: Figure):
        """The size is right, and every text is inside and apart from all others."""
        self.assertLessEqual(figure.get_size_inches()[0], 10)
        width, height = figure.get_size_inches() * figure.dpi
        boxes = text_boxes(figure)
        for text, box in boxes:
            inside = box.x0 > -1 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1
            self.assertTrue(inside, f"{text!r} sticks out of the figure: {box}")
        edges = np.array([box.padded(-1.2).extents for _, box in boxes])
        starts, ends = edges[:, :2], edges[:, 2:]
        overlap = np.all(starts[:, None] < ends[None], axis=-1)
        for i, j in np.argwhere(np.triu(overlap & overlap.T, 1)):
            self.fail(f"{boxes[i][0]!r} and {boxes[j][0]!r} overlap")

    @parameterized.named_parameters(
        ("5-2-id", 5, 2, 5, 1),
        ("fewer components", 9, 2, 3),
        ("one of each", 1, 1, 1, 2),
    )
    def test_tms(self, *sizes):
        self.check_tms(*sizes)

    @parameterized.named_parameters(
        ("5-2", 5, 2, 5),
        ("40-10", 40, 10, 50),
        ("40-10-id", 40, 10, 50, 1),
        ("many in two dimensions", 7, 2, 30),
    )
    @pytest.mark.slow
    def test_tms_of_other_sizes(self, *sizes):
        self.check_tms(*sizes)

    def check_tms(self, features, width, count, layers=0):
        figures = TMS.draw({}, tms_arrays(features, width, count, layers))
        self.assertEqual(set(figures), set(tms_captions.CAPTIONS))
        for name, figure in figures.items():
            with self.subTest(name):
                self.check(figure)

    @pytest.mark.slow
    def test_a_page_at_most(self):
        figures = TMS.draw({}, tms_arrays(5, 2, 1500))
        self.check_a_page_at_most(figures, "first 54 of 1502")
        for figure in figures.values():
            height = struct.unpack(">I", style.to_png(figure, dpi=40)[20:24])[0]
            self.assertLessEqual(height, 40 * style.PAGE + 1)

    @parameterized.named_parameters(
        ("narrow ones", lambda: TMS.draw({}, tms_arrays(40, 10, 1500)), "of 1502; the comp"),
        ("layers", lambda: TMS.draw({}, tms_arrays(5, 2, 9, 60)), ""),
        ("features", lambda: TMS.draw({}, tms_arrays(120, 10, 130)), "of 132; the comp"),
        ("contributions", lambda: resid_mlp_figures(130, (9,), 140), "first 100 of 130 features"),
    )
    @pytest.mark.slow
    def test_a_page_at_most_of_anything(self, make, said):
        self.check_a_page_at_most(make(), said)

    def check_a_page_at_most(self, figures, said):
        texts = []
        for name, figure in figures.items():
            figure.draw_without_rendering()
            self.assertLessEqual(figure.get_size_inches()[1], style.PAGE, name)
            texts += [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
        self.assertIn(said, "\n".join(texts))

    def test_components_that_hold_nothing_are_left_out_first(self):
        arrays = tms_arrays(5, 2, 1500)
        panels = tms._panels(arrays)[2:]
        held = [panel.note != "no feature" for panel in panels]
        self.assertEqual(held, sorted(held, reverse=True))
        sizes = [np.linalg.norm(panel.weight) for panel in panels[sum(held) :]]
        self.assertEqual(sizes, sorted(sizes, reverse=True))

    def test_one_figure_alone(self):
        numbers, arrays = resid_mlp_arrays(4, (2,), 3)
        drawn = TMS.draw({}, tms_arrays(5, 2, 5), only="component_map")
        self.assertEqual(list(drawn), ["component_map"])
        self.assertEqual(list(RESID_MLP.draw(numbers, arrays, only="scrubbing")), ["scrubbing"])
        with self.assertRaisesRegex(ValueError, "'polygons'.*'components'"):
            TMS.draw({}, tms_arrays(5, 2, 5), only="polygons")

    def test_tms_titles_tell_merged_and_empty_components(self):
        shares = np.eye(5)
        shares[0, 1], shares[1, 1] = 1, 0
        figure = tms.component_drawings(tms_arrays(5, 2, 5, shares=shares))
        texts = [text for text, _ in text_boxes(figure)]
        self.assertIn("$x_{0}$  $x_{1}$", texts)
        self.assertEqual(texts.count("no feature"), 1)
        self.assertEqual([t for t in texts if t.startswith("component")][-1], "component 1")

    def test_drawn_lines_are_the_weights_that_can_be_seen(self):
        weight = np.array([[1.0, 0.5], [0.01, -0.25]])  # 0.01 is too pale to see
        panel = networks.DrawnNetwork("", weight, np.zeros((0, 2, 2)))
        figure = style.new_figure(2)
        axes = figure.subplots()
        networks.draw_network(axes, panel, panel, networks.LARGE)
        steps = [lines for lines in axes.collections if hasattr(lines, "get_segments")]
        for lines in steps:
            self.assertLen(lines.get_segments(), 3)
            greys = [1 - color[0] for color in lines.get_colors()]
            np.testing.assert_allclose(greys, 0.95 * np.array([0.25, 0.5, 1]), atol=2e-3)

    @parameterized.named_parameters(
        ("small", 4, (2, 2), 1),
        ("one feature", 1, (1,), 2),
    )
    @pytest.mark.slow
    def test_resid_mlp(self, features, neurons, count):
        self.check_resid_mlp(features, neurons, count)

    @parameterized.named_parameters(
        ("1 layer", 100, (50,), 130),
        ("2 layers", 30, (25, 25), 40),
        ("3 layers", 100, (17, 17, 17), 60),
    )
    @pytest.mark.slow
    def test_resid_mlp_of_the_size_of_the_paper(self, features, neurons, count):
        self.check_resid_mlp(features, neurons, count)

    def check_resid_mlp(self, features, neurons, count):
        numbers, arrays = resid_mlp_arrays(features, neurons, count)
        figures = RESID_MLP.draw(numbers, arrays)
        self.assertEqual(set(figures), set(resid_mlp_captions.CAPTIONS))
        for name, figure in figures.items():
            with self.subTest(name):
                self.check(figure)

    def test_samples_without_any_error(self):
        numbers, arrays = resid_mlp_arrays(4, (2,), 3)
        zero = arrays.samples._replace(
            **{name: np.zeros(5) for name in ("topk", "scrubbed", "antiscrubbed")}
        )
        self.check(scrubbing.scrubbing(zero, dict.fromkeys(numbers, 0.0)))

    def test_histogram_holds_every_sample_with_an_error(self):
        numbers, arrays = resid_mlp_arrays(50, (10,), 50)
        (axes,) = scrubbing.scrubbing(arrays.samples, numbers).axes
        for steps, role in zip(axes.patches, ("topk", "scrubbed", "antiscrubbed"), strict=True):
            self.assertEqual(
                steps.get_data().values.sum(), (getattr(arrays.samples, role) > 0).sum()
            )

    def test_bars_are_sorted_by_the_target(self):
        _, arrays = resid_mlp_arrays(50, (10,), 50)
        for axes in resid_mlp.feature_errors(arrays.per_feature).axes:
            topk, target, better = (
                np.array([bar.get_height() for bar in bars]) for bars in axes.containers
            )
            np.testing.assert_array_equal(target, np.sort(target))
            self.assertLen(topk, 50)
            self.assertTrue(np.any(topk < target))
            np.testing.assert_array_equal(better, np.where(topk < target, topk, np.nan))

    @parameterized.parameters(
        ([1.0, 0.5, 0.0], [1.0, 0.5, 0.0]),
        ([0.5, 0.5], [0.55, 0.45]),
        ([1.0, 0.52, 0.5, 0.48], [1.0, 0.6, 0.5, 0.4]),
        ([0.5, 0.45, 0.45], [0.5667, 0.4667, 0.3667]),
        ([], []),
    )
    def test_spread(self, values, expected):
        np.testing.assert_allclose(
            contributions._spread(np.array(values), 0.1), expected, atol=1e-3
        )

    def test_png(self):
        figure = tms.component_map(tms_arrays(5, 2, 5))
        png = style.to_png(figure)
        self.assertEqual(png[:8], b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", png[16:24])
        self.assertEqual(width, 2000)
        self.assertEqual(height, round(200 * figure.get_size_inches()[1]))
        self.assertTrue(style.is_ours(png))
        self.assertFalse(style.is_ours(report_example.png()))

    def test_no_state_is_left_and_none_is_read(self):
        odd = {"font.size": 30, "axes.facecolor": "red", "savefig.bbox": "tight"}
        plain = style.to_png(tms.component_map(tms_arrays(5, 2, 5)))
        with matplotlib.rc_context(odd):
            before = dict(matplotlib.rcParams)
            figure = tms.component_map(tms_arrays(5, 2, 5))
            self.assertEqual(style.to_png(figure), plain)
            self.assertEqual(dict(matplotlib.rcParams), before)
        self.assertEqual(figure.axes[0].get_facecolor(), (1.0, 1.0, 1.0, 1.0))

    @parameterized.parameters((2.64e-4, "2.6"), (0.0, "0"), (float("nan"), "nan"), (12.0, "1.2"))
    def test_scientific(self, value, start):
        self.assertStartsWith(style.scientific(value), start)

    @parameterized.parameters(
        ("a.b/c", 10, 3, "a.b/c"),
        ("layers.10.mlp.weight", 12, 3, "layers.10.\nmlp.weight"),
        ("layers/10/weight", 7, 2, "layers/\n…eight"),
        ("x" * 25, 10, 3, "xxxxxxxxxx\nxxxxxxxxxx\nxxxxx"),
        ("a" * 10 + "b" * 10 + "c" * 10 + "d" * 5, 10, 3, "aaaaaaaaaa\n…ccccccccc\nddddd"),
        ("w$_in$", 10, 3, r"w\$_in\$"),
        ("", 10, 3, ""),
    )
    def test_names_in_lines(self, name, width, lines, expected):
        self.assertEqual(style.label(name, width, lines), expected)

    def test_long_names_of_sites_are_apart(self):
        parts = ("self_attn.q_proj", r"$\no$", "mlp.gate_up_proj")
        names = [f"language_model.model.layers.11.{name}.weight" for name in parts]
        target = apd_jax.Target(
            lambda p, x: sum(x @ p[name] for name in names),
            {name: np.ones((4, 4), np.float32) for name in names},
            inputs=np.ones((2, 4), np.float32),
        )
        figure = decomposition_figures.singular_values(target, components(target, 2, 1))
        style.to_png(figure)
        renderer = FigureCanvasAgg(figure).get_renderer()
        boxes = [axes.title.get_window_extent(renderer) for axes in figure.axes]
        self.assertLen(boxes, 3)
        for one, after in zip(boxes, boxes[1:], strict=False):
            self.assertLess(one.x1, after.x0)

    def test_shares_that_are_not_finite(self):
        """Components may grow beyond the range of floats; the report shows the rest."""
        shares = {"a": np.inf, "b": 0.1, "c": np.nan}
        for names in ("abc", "b", "ac"):
            found = {name: shares[name] for name in names}
            summary = types.SimpleNamespace(unfaithfulness=found, empty_sites=[])
            figure = decomposition_figures.faithfulness(summary)
            style.to_png(figure)
            labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
            finite = ["not finite" not in label for label in labels]
            self.assertEqual(finite, [name == "b" for name in names])

    def test_captions_are_whole(self):
        for table in (tms_captions.CAPTIONS, resid_mlp_captions.CAPTIONS):
            for name, caption in table.items():
                self.assertRegex(caption.title, r"^[A-Z]", name)
                self.assertRegex(caption.text, r"^[^{}]{80,}\.$", name)


if __name__ == "__main__":
    absltest.main()
