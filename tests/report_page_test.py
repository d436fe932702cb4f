"""The report as a reader meets it: rendered and used in headless Chromium."""

import json
import pathlib
import shutil
import tempfile

import chromium
import numpy as np
import pytest
import report_example
from absl.testing import absltest, parameterized

from apd_jax.report import page

# Smallest contrast of any visible text with what is behind it.
CONTRAST = """
(() => {
  const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return context.getImageData(0, 0, 1, 1).data;
  };
  const luminance = (colour) => [...colour].slice(0, 3)
    .map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = rgba(getComputedStyle(node).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let worst = [99, ""];
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !parent.checkVisibility()) continue;
    const style = getComputedStyle(parent);
    const ink = parent.namespaceURI.endsWith("svg") ? style.fill : style.color;
    const pair = [luminance(rgba(ink)), luminance(behind(parent))].sort((a, b) => b - a);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (contrast < worst[0]) worst = [contrast, walker.currentNode.textContent.trim()];
  }
  return worst;
})()
"""

# Elements that stick out of the window, but for those inside a part that scrolls.
STICKING_OUT = """
[...document.querySelectorAll("main *")].filter((node) => {
  const box = node.getBoundingClientRect();
  return box.width > 0 && box.right > document.documentElement.clientWidth + 0.5
    && !node.closest(".scroll, .wide, pre, dialog, .hidden");
}).map((node) => node.outerHTML.slice(0, 120))
"""


@absltest.skipIf(
    chromium.find() is None, "needs Chromium: install the chromium package of your system"
)
class ReportPageTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.directory = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.directory, ignore_errors=True)
        cls.path = cls.directory / "report.html"
        cls.path.write_text(page.render_report(**report_example.arguments()), encoding="utf-8")
        cls.page = cls.enterClassContext(chromium.Chromium(cls.directory / "profile"))

    def setUp(self):
        super().setUp()
        self.page.requests.clear()
        self.page.errors.clear()
        self.page.media()
        self.page.window(1280)
        self.page.open(self.path)

    def tearDown(self):
        # Whatever a test did, the page complained about nothing and asked for nothing.
        self.page.evaluate("0")
        self.assertEqual(self.page.errors, [])
        self.assertEqual(set(self.page.requests), {self.path.as_uri()})
        self.assertNotEqual(self.page.evaluate("document.title"), "owned")
        super().tearDown()

    def text(self, selector):
        """Visible text of an element, with single spaces."""
        query = f"document.querySelector({json.dumps(selector)}).innerText"
        found = self.page.evaluate(query)
        return " ".join(found.split())

    def chosen(self):
        """The component and the feature that the browser shows."""
        values = self.page.evaluate(
            "['component-select', 'feature-select'].map((id) => document.getElementById(id).value)"
        )
        return tuple(int(value) for value in values)

    @parameterized.product(width=(320, 390, 768, 1280, 1920), scheme=("light", "dark"))
    def test_fits_the_window(self, width, scheme):
        self.page.media(scheme=scheme)
        self.page.window(width, mobile=width < 500)
        self.page.open(self.path)
        self.assertEqual(self.page.evaluate("document.documentElement.scrollWidth"), width)
        self.assertEqual(self.page.evaluate(STICKING_OUT), [])

    @parameterized.parameters("light", "dark")
    @pytest.mark.slow
    def test_text_is_readable(self, scheme):
        self.page.media(scheme=scheme)
        self.page.evaluate(
            "document.querySelectorAll('details').forEach((d) => { d.open = true; })"
        )
        background = self.page.evaluate("getComputedStyle(document.body).backgroundColor")
        self.assertEqual(background == "rgb(255, 255, 255)", scheme == "light")
        contrast, text = self.page.evaluate(CONTRAST)
        self.assertGreaterEqual(contrast, 4.5, text)

    def test_images_are_there_and_figures_enlarge(self):
        sizes = self.page.evaluate(
            "[...document.querySelectorAll('.panel img')].map((image) => image.naturalWidth)"
        )
        self.assertEqual(sizes, [600, 1800])
        self.page.click("#figure-plain img")
        self.assertTrue(self.page.evaluate("document.getElementById('enlarged').open"))
        self.page.click("#enlarged button")
        self.assertFalse(self.page.evaluate("document.getElementById('enlarged').open"))

    def test_curves_tell_their_values(self):
        # The pointer at four fifths of the step axis: step 1600 of 2000 is nearest.
        self.page.point("[data-chart='0'] svg", x=0.8)
        expected = "step 1,600 seed 7 0.001875 seed 8 0.003125 seed 9 0.0025"
        self.assertEqual(self.text("[data-chart='0'] .tooltip"), expected)
        above = self.page.evaluate(
            "(() => { const tops = ['svg', '.tooltip'].map((part) => document.querySelector("
            "`[data-chart='0'] ${part}`).getBoundingClientRect().top);"
            "return tops[1] - tops[0]; })()"
        )
        self.assertBetween(above, 0, 20)
        self.page.point("h1")
        self.assertTrue(self.page.evaluate("document.querySelector('.tooltip').hidden"))

    def test_command_is_copied(self):
        self.page.call("Browser.grantPermissions", permissions=["clipboardReadWrite"])
        self.page.click("#copy")
        self.page.evaluate("new Promise((done) => setTimeout(done, 100))")
        self.assertEqual(self.text("#copy"), "Copied")
        copied = self.page.evaluate("navigator.clipboard.readText()")
        self.assertEqual(copied, report_example.arguments()["command"])

    def test_browser_starts_at_a_component_with_a_feature(self):
        self.assertEqual(self.chosen(), (0, 0))
        self.assertIn("Represents feature 0.", self.text("#component-summary"))
        self.assertIn("Active on 5% of samples", self.text("#component-summary"))

    def test_components_are_chosen_in_every_way(self):
        self.page.click("#component-map button:nth-child(3)")
        self.assertEqual(self.chosen(), (2, 0))
        self.assertIn("Represents feature 2.", self.text("#component-summary"))
        self.page.click("#component-summary .link")
        self.assertEqual(self.chosen(), (2, 2))
        self.page.click("#component-pane [data-step='1']")
        self.assertEqual(self.chosen(), (3, 2))
        self.assertIn("Represents no feature.", self.text("#component-summary"))
        self.assertIn("Switched on by feature 3 alone.", self.text("#component-summary"))
        self.page.click("#component-map button:nth-child(1)")
        self.page.click("#component-pane [data-step='-1']")
        self.assertEqual(self.chosen(), (5, 2))
        self.assertEqual(self.text("#weights-name"), "5")
        self.assertIn("All weights are zero here.", self.text("#component-sites"))
        # Bars fill the chart to the right of its 44 pixels of axis labels.
        self.page.click("#feature-attributions svg", x=0.33)
        self.assertEqual(self.chosen(), (1, 2))
        self.page.click("#feature-top tbody tr:nth-child(1) .link")
        self.assertEqual(self.chosen(), (2, 2))

    def test_features_are_chosen_in_every_way(self):
        self.page.click("#feature-map button:nth-child(4)")
        self.assertEqual(self.chosen(), (0, 3))
        self.assertIn("Represented by no component.", self.text("#feature-summary"))
        self.assertIn("Switches on component 3.", self.text("#feature-summary"))
        self.page.click("#feature-pane [data-step='1']")
        self.assertEqual(self.chosen(), (0, 0))
        self.page.click("#component-activity svg", x=0.95)
        self.assertEqual(self.chosen(), (0, 3))
        self.page.evaluate(
            "(() => { const s = document.getElementById('feature-select'); s.value = 1;"
            "s.dispatchEvent(new Event('change')); })()"
        )
        self.assertEqual(self.chosen(), (0, 1))

    def test_numbers_are_those_of_the_arrays(self):
        arrays = report_example.browser_arrays()
        self.page.click("#feature-map button:nth-child(2)")
        error = np.mean((arrays["target_outputs"][1] - arrays["topk_outputs"][1]) ** 2)
        self.assertIn(f"output {error:.4g}.", self.text("#feature-summary"))
        rows = [self.text(f"#feature-top tbody tr:nth-child({i})") for i in (1, 2, 3, 4, 5)]
        order = np.argsort(-arrays["attributions"][1])[:5]
        self.assertEqual([int(row.split()[0]) for row in rows], order.tolist())
        self.assertEqual(rows[0], "1 0.6 ✓ on 0.36 feature 1")
        marks = self.page.evaluate(
            "[...document.querySelectorAll('#feature-attributions .bar')]"
            ".map((bar) => bar.classList.contains('on'))"
        )
        self.assertEqual(marks, arrays["topk_mask"][1].tolist())
        self.page.point("#feature-outputs svg", x=0.35)
        self.assertEqual(self.text("#feature-outputs .readout"), "output 1: target 0.8, top-k 0.71")

    @pytest.mark.slow
    def test_weights_are_those_of_the_arrays(self):
        arrays = report_example.browser_arrays()
        for index, (u, v) in enumerate(arrays["factors"].values()):
            shown = self.page.evaluate(
                f"Array.from(new Site(readData('browser-data').sites[{index}]).matrix(4))"
            )
            literal = u[4] @ v[4]
            error = np.abs(np.reshape(shown, literal.shape) - literal).max()
            self.assertLess(error, 0.02 * np.abs(literal).max())

    def test_heatmaps_show_sign_and_size(self):
        arrays = report_example.browser_arrays()
        u, v = arrays["factors"]["linear1"]
        self.page.click("#component-map button:nth-child(2)")
        pixels = self.page.evaluate(
            "(() => { const c = document.querySelector('#component-sites canvas');"
            "return [c.width, c.height, ...c.getContext('2d').getImageData("
            "0, 0, c.width, c.height).data]; })()"
        )
        self.assertEqual(pixels[:2], [2, 4])
        colours = np.reshape(pixels[2:], (4, 2, 4))[:, :, :3]
        weights = u[1] @ v[1]
        strong = np.abs(weights) > 0.3 * np.abs(weights).max()
        bluer = colours[:, :, 2] > colours[:, :, 0]
        np.testing.assert_array_equal(bluer[strong], (weights > 0)[strong])
        self.page.point("#component-sites canvas", x=0.75, y=0.1)
        readout = self.text("#component-sites .readout")
        self.assertStartsWith(readout, "feature 0, dimension 1: component ")
        value = float(readout.split("component ")[1].split(",")[0].replace("−", "-"))
        self.assertAlmostEqual(value, weights[0, 1], delta=1e-3)

    def test_heatmaps_keep_whole_pixels(self):
        sizes = self.page.evaluate(
            "[...document.querySelectorAll('#component-sites canvas')].map((canvas) =>"
            "[canvas.clientWidth / canvas.width, canvas.clientHeight / canvas.height])"
        )
        self.assertEqual(sizes, np.rint(sizes).tolist())

    def test_large_sites_say_how_they_are_shown(self):
        sites = self.text("#component-sites")
        self.assertIn(
            "Drawn from the 2 leading singular triplets, which hold 100%, in 8 bits.", sites
        )
        self.assertIn("A cell is the largest of", sites)
        self.assertIn("across: 300 inputs, down: 20 outputs", sites)

    def test_colours_on_a_scale_of_its_own(self):
        self.assertNotIn("component −", self.text("#component-sites"))
        self.page.click("#own-scale")
        self.assertIn("component −", self.text("#component-sites"))

    def test_everything_follows_the_colour_scheme(self):
        first = "document.querySelector('#component-sites canvas').toDataURL()"
        light = self.page.evaluate(first)
        self.page.media(scheme="dark")
        self.page.evaluate("new Promise((done) => setTimeout(done, 100))")
        self.assertNotEqual(self.page.evaluate(first), light)

    def test_keyboard_reaches_the_browser(self):
        self.page.evaluate("document.getElementById('component-select').focus()")
        for kind in ("keyDown", "keyUp"):
            self.page.call(
                "Input.dispatchKeyEvent", type=kind, key="ArrowDown", windowsVirtualKeyCode=40
            )
        self.assertEqual(self.chosen(), (1, 0))

    def test_prints_without_the_browser_and_with_the_config(self):
        self.page.media(kind="print", scheme="dark")
        self.assertFalse(self.page.evaluate("document.querySelector('.browser').checkVisibility()"))
        self.assertIn("open this page on a screen", self.text("#components"))
        ink = self.page.evaluate("getComputedStyle(document.body).color")
        self.assertEqual(ink, "rgb(26, 29, 33)")
        opened = (
            "(window.dispatchEvent(new Event('beforeprint')),"
            "[...document.querySelectorAll('details')].every((details) => details.open))"
        )
        self.assertTrue(self.page.evaluate(opened))
        self.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        self.assertFalse(self.page.evaluate("document.getElementById('config').open"))
        self.page.media()
        self.assertStartsWith(self.page.pdf(), b"%PDF")

    @pytest.mark.slow
    def test_works_with_its_parts_missing(self):
        arguments = report_example.arguments() | {"browser": None, "command": "", "panels": []}
        arguments["metrics"] = arguments["target_metrics"] = []
        path = self.directory / "bare.html"
        path.write_text(page.render_report(**arguments), encoding="utf-8")
        self.page.open(path)
        self.assertIn("Every seed", self.text("main"))
        self.assertEqual(self.page.requests[-1], path.as_uri())
        self.page.requests.pop()

    @pytest.mark.slow
    def test_reads_without_javascript(self):
        self.page.call("Emulation.setScriptExecutionDisabled", value=True)
        try:
            self.page.open(self.path)
            picture = self.page.screenshot(full=False)
        finally:
            self.page.call("Emulation.setScriptExecutionDisabled", value=False)
        self.assertStartsWith(picture, b"\x89PNG")


if __name__ == "__main__":
    absltest.main()
