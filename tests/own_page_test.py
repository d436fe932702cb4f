"""The report of a decomposition of one's own, in text and in headless Chromium."""

import pathlib
import re
import shutil
import tempfile

import chromium
import networks
import numpy as np
import pytest
from absl.testing import absltest
from report_page_test import CONTRAST, STICKING_OUT

import apd_jax
from apd_jax.insight import page

X = networks.normal(5, 48, 3)


def decomposition():
    """A few steps, with one component that is always on."""
    settings = dict(num_components=3, topk=1.5, rank=1, steps=4, batch_size=16, chunk_steps=1)
    return apd_jax.decompose(networks.mlp(), X, **settings)


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
        for title, _ in page.CAPTIONS.values():
            self.assertIn(title, self.text)
        alive = np.flatnonzero(summary.active_share > 0)
        rows = self.text.partition('<section id="components">')[2].partition("</section>")[0]
        self.assertLen(re.findall('<th scope="row">', rows), len(alive))
        best = self.found.top_examples(int(alive[0]), X, count=6).examples
        self.assertIn(", ".join(map(str, best)), rows)
        self.assertNotIn("object at", self.text)
        self.assertIn("first/b", self.text)  # a parameter that is left, with its reason

    @pytest.mark.slow
    def test_a_trivial_one_is_said_to_be(self):
        whole = apd_jax.decompose(
            networks.mlp(), X, num_components=2, topk=2, steps=1, batch_size=16
        )
        text, _ = page.render(whole, X, None)
        self.assertIn("SAYS LITTLE", text)
        self.assertIn("Trivial: components [0, 1] are active on more than 95%", text)

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


if __name__ == "__main__":
    absltest.main()
