"""The report of a decomposition of one's own, in text and in headless Chromium."""

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
from unittest import mock

import chromium
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from report_page_test import CONTRAST, STICKING_OUT

import apd_jax
from apd_jax.errors import UserError
from apd_jax.report import decomposition_page, decomposition_panels, evidence_section, examples

X = networks.normal(5, 48, 3)


def decomposition():
    """A few steps, with one component that is always on."""
    settings = dict(num_components=3, topk=1.5, rank=1, steps=4, batch_size=16, chunk_steps=1)
    return apd_jax.decompose(networks.mlp(), X, **settings)


def without_evidence():
    """Pages without this section, which takes most of the time."""
    return mock.patch.object(evidence_section, "measure", side_effect=UserError("left out"))


@pytest.mark.slow
class OwnPageTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.found = decomposition()
        cls.directory = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.directory, ignore_errors=True)
        cls.path = cls.directory / "deep" / "report.html"
        labels = np.asarray(cls.found.target(X)).argmax(axis=1)
        cls.found.report(cls.path, X, labels)
        cls.text = cls.path.read_text()

    def test_what_is_on_it(self):
        summary = self.found.summary(X)
        for way in summary.rows:
            self.assertIn(f'<span class="name">{way.name}</span>', self.text)
        self.assertIn("Accuracy", self.text)
        for title, _ in decomposition_panels.CAPTIONS.values():
            self.assertIn(title, self.text)
        alive = np.flatnonzero(summary.active_share > 0)
        rows = self.text.partition('<section id="components">')[2].partition("</section>")[0]
        self.assertLen(re.findall('<th scope="row">', rows), len(alive))
        for best in self.found.top_examples(int(alive[0]), X, count=6).examples:
            text = " ".join(f"{value:.2g}" for value in np.asarray(X[best]).tolist())
            self.assertIn(f'{best} <span class="note">{text}</span>', rows)
        worst = self.text.partition("<h3>Examples explained worst")[2].partition("</table>")[0]
        places = [place.place for place in summary.errors.worst]
        self.assertEqual(re.findall('<th scope="row">(.*?)</th>', worst), places)
        self.assertNotIn("object at", self.text)
        self.assertIn("first/b", self.text)  # a parameter that is left, with its reason

    def test_evidence_that_is_given(self):
        limits = apd_jax.Limits(own=0.0123)
        found = self.found.evidence(X[:9], adversary_steps=(1, 3), draws=1, limits=limits)
        text, _ = decomposition_page.render(self.found, X, None, evidence=found, trained_on=True)
        self.assertIn("on 9 examples of its own", text)
        self.assertIn("The adversary takes 3 signed gradient steps", text)
        self.assertIn("0.0123", text)
        self.assertNotIn(decomposition_page.TRAINED_ON, text)
        with self.assertRaisesRegex(UserError, "evidence must be what found.evidence.x. returns"):
            self.found.report(self.path, X, evidence=True)

    def test_a_trivial_one_is_said_to_be(self):
        whole = apd_jax.decompose(
            networks.mlp(), X, num_components=2, topk=2, steps=1, batch_size=16, refine={"every": 0}
        )
        with without_evidence():
            text, _ = decomposition_page.render(whole, X, None)
        self.assertIn("There is no evidence: left out.", text)
        self.assertIn("TRIVIAL</span>", text)
        self.assertIn("Trivial: components [0, 1] are active on more than 95%", text)

    def test_tokens_of_examples_by_position(self):
        def network(params, batch):
            return jnp.tanh(params["embed"][batch["<b>"]]) @ params["out"] * batch["scale"]

        x = {
            "<b>": np.random.default_rng(0).integers(0, 7, (8, 20)),
            "scale": np.full((8, 1, 1), 0.5),
        }
        params = {"embed": networks.normal(0, 7, 4), "out": networks.normal(1, 4, 3)}
        settings = dict(num_components=3, topk=1, rank=1, steps=1, batch_size=4, per_position=True)
        settings["refine"] = {"every": 0}
        found = apd_jax.decompose(apd_jax.Target(network, params), x, **settings)
        with without_evidence():
            text, _ = decomposition_page.render(found, x, None)
        self.assertNotIn("<b>", text)
        shown = re.findall(r"(\d+):(\d+) <span[^>]*>&lt;b&gt; (.*?); scale 0.5</span>", text)
        self.assertNotEmpty(shown)
        for example, position, tokens in shown:
            token = x["<b>"][int(example), int(position)]
            self.assertIn(f"[{token}]", tokens)
            self.assertLen(re.findall(r"\d", tokens), 16)

    @absltest.skipIf(
        chromium.find() is None, "needs Chromium: install the chromium package of your system"
    )
    def test_in_a_browser(self):
        with chromium.Chromium(self.directory / "profile") as browser:
            for width, scheme in ((1280, "light"), (390, "dark")):
                browser.media(scheme=scheme)
                browser.window(width)
                browser.open(self.path)
                self.assertEqual(browser.errors, [])
                self.assertEqual(set(browser.requests), {self.path.as_uri()})
                self.assertEqual(browser.evaluate(STICKING_OUT), [])
                contrast, text = browser.evaluate(CONTRAST)
                self.assertGreater(contrast, 4.5, text)
            browser.point(".chart svg")
            self.assertIn("step", browser.evaluate("document.querySelector('.tooltip').innerText"))


class PathTest(parameterized.TestCase):
    """The page is made by hand: what is wrong with its path is said before, or the test fails."""

    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.enterContext(contextlib.chdir(self.root))
        self.enterContext(mock.patch.dict(os.environ, HOME=str(self.root / "home")))

    @parameterized.named_parameters(
        (
            "a long name",
            "x" * 300 + ".html",
            r"written to .*xx\.html \(File name too long\)",
        ),
        ("too long for the temporary one", "x" * 247 + ".html", "File name too long"),
        ("no file can be made", "/proc/r.html", "can't be written to /proc/r.html"),
        ("a NUL", "a\0.html", r"^'a\\x00.html': a path can't have the character '\\x00'"),
        ("half a character", "\ud800.html", r"can't have the character '\\ud800'"),
        ("nobody's home", "~nobody-here/r.html", "there is no such home directory"),
        ("a bucket", "gs://bucket/r.html", "is a remote path"),
    )
    def test_refused(self, path, message):
        with (
            mock.patch.object(decomposition_page, "render", side_effect=AssertionError),
            self.assertRaisesRegex(apd_jax.UserError, message),
        ):
            decomposition_page.write(None, path, X)
        self.assertEmpty(list(self.root.iterdir()))

    def test_home(self):
        with mock.patch.object(decomposition_page, "render", return_value=("page", [])):
            decomposition_page.write(None, "~/deep/r.html", X)
        files = [path for path in self.root.rglob("*") if path.is_file()]
        self.assertEqual(files, [self.root / "home" / "deep" / "r.html"])


class AsPicturesTest(parameterized.TestCase):
    """A marked pixel is found again where it belongs."""

    @parameterized.named_parameters(
        ("a grey image", (9, 7), (2, 3), (9, 7)),
        ("channels last", (9, 7, 3), (2, 3, 1), (9, 7, 3)),
        ("channels first", (3, 9, 7), (1, 2, 3), (9, 7, 3)),
        ("channels first, wide", (3, 3, 16), (1, 2, 3), (3, 16, 3)),
        ("one channel last", (9, 7, 1), (2, 3, 0), (9, 7)),
        ("one channel first", (1, 9, 7), (0, 2, 3), (9, 7)),
        ("opacity", (4, 9, 7), (1, 2, 3), (9, 7, 4)),
        ("large", (64, 64, 3), (2, 3, 1), (64, 64, 3)),
    )
    def test_images(self, shape, marked, expected):
        for dtype, value in ((np.float32, 1.0), (np.uint8, 255)):
            x = np.zeros((2, *shape), dtype)
            x[(1, *marked)] = value
            images, _ = examples.as_pictures(x)
            self.assertEqual(images.shape, (2, *expected))
            place = (1, 2, 3, 1)[: images.ndim]
            self.assertEqual(np.argwhere(images).tolist(), [list(place)])
            self.assertEqual(images[place], 255 if len(expected) == 2 and value == 255 else 1)

    def test_colours_outside_of_0_to_1_are_scaled(self):
        x = np.linspace(-2.0, 2.0, 2 * 6 * 5 * 3).reshape(2, 6, 5, 3)
        images, why = examples.as_pictures(x)
        self.assertEqual((images.min(), images.max()), (0, 1))
        self.assertIn("-2 is drawn as 0 and 2 as 1", why)

    def test_vectors(self):
        self.assertEqual(examples.as_pictures(np.ones((2, 64)))[0].shape, (2, 8, 8))
        self.assertEqual(examples.as_pictures(np.ones((2, 10)))[0].shape, (2, 1, 10))

    def test_half_precision(self):
        for dtype in (np.float16, jnp.bfloat16):
            self.assertEqual(examples.as_pictures(np.ones((2, 9, 7), dtype))[0].shape, (2, 9, 7))

    @parameterized.named_parameters(
        ("true and false", np.zeros((2, 9, 7), bool), "bool"),
        ("five channels", np.zeros((2, 5, 3, 16)), r"shape \(5, 3, 16\)"),
        ("tokens", np.zeros((2, 9), int), "int64"),
        ("bytes", np.zeros((2, 9), np.uint8), "whole numbers"),
        ("several arrays", {"a": np.zeros((2, 9)), "b": np.zeros((2, 9))}, "2 arrays"),
        ("a video", np.zeros((2, 4, 9, 7, 3)), "is no image"),
        ("too large", np.zeros((1, 1024, 1024)), "1024 x 1024"),
        ("a long vector", np.zeros((2, 5000)), "5,000 entries"),
        ("no numbers", np.full((2, 9, 7), np.nan), "NaN"),
    )
    def test_what_is_not_drawn_says_why(self, x, why):
        images, said = examples.as_pictures(x)
        self.assertIsNone(images)
        self.assertRegex(said, why)


class AsTextTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("tokens", [3, 1, 4], None, "3 1 4"),
        ("a number", 3, None, "3"),
        ("a position", [3, 1, 4], 1, "3 [1] 4"),
        ("the first of many", range(20), None, "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 …"),
        ("around", range(30), 12, "… 4 5 6 7 8 9 10 11 [12] 13 14 15 16 17 18 19 …"),
        ("the last of many", range(20), 19, "… 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 [19]"),
        ("a small vector", [0.123, -2.0, 0.0], None, "0.12 -2 0"),
        ("true or false", [True, False], None, "1 0"),
        ("a long vector", np.zeros(9), None, ""),
        ("an image of whole numbers", np.zeros((5, 5), int), None, ""),
    )
    def test_an_example(self, values, position, expected):
        self.assertEqual(examples.as_text(np.asarray(values)[None], 0, position), expected)

    @parameterized.named_parameters(
        ("the middle", 12, ("abcdefghijkl", "m", "nopqrstu…")),
        ("the first", 0, ("", "a", "bcdefghi…")),
        ("the last", 25, ("…bcdefghijklmnopqrstuvwxy", "z", "")),
        ("none", None, ("abcdefghijklmnopqrstuvwxyz", "", "")),
    )
    def test_tokens_as_text(self, position, expected):
        x = {"mask": np.ones((2, 26), np.float32), "ids": np.tile(np.arange(26), (2, 1))}

        def decode(tokens):
            return "".join(chr(ord("a") + token) for token in tokens)

        self.assertEqual(examples.decoded(x, decode, 1, position), expected)

    def test_tokens_are_told_from_masks_and_numbers_of_positions(self):
        tokens = np.random.default_rng(0).integers(3, 9, (6, 5))
        mask = np.ones_like(tokens)
        mask[2, 3:] = 0
        numbers = np.broadcast_to(np.arange(100, 105), tokens.shape)
        x = {"attention_mask": mask, "input_ids": tokens, "position_ids": numbers, "type": 0 * mask}
        alone = {"attention_mask": mask[:1], "input_ids": tokens[:1]}
        for inputs in (x, alone):
            before, *_ = examples.decoded(inputs, lambda ids: " ".join(map(str, ids)), 0)
            self.assertEqual(before, " ".join(map(str, tokens[0])))

    def test_what_decode_can_not_take(self):
        with self.assertRaisesRegex(apd_jax.UserError, r"whole numbers \[N, T\], got .*\[2, 4\]"):
            examples.check_decode(np.zeros((2, 4)), str)
        with self.assertRaisesRegex(apd_jax.UserError, "as a string, got a list"):
            examples.check_decode(np.zeros((2, 4), int), list)
        with self.assertRaisesRegex(apd_jax.UserError, r"an array \[T\] .* raised TypeError"):
            examples.check_decode(np.zeros((2, 4), int), "abc".__getitem__)  # one token at a time

    def test_leaves_have_names(self):
        x = {"tokens": np.array([[1, 2]]), "noise": np.zeros((1, 99)), "scale": np.array([0.5])}
        self.assertEqual(examples.as_text(x, 0), "scale 0.5; tokens 1 2")


if __name__ == "__main__":
    absltest.main()
