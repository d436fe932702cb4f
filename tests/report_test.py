"""The report's content, escaping and offline promise, without a browser."""

import base64
import hashlib
import html.parser
import json
import math
import re

import report_example
from absl.testing import absltest, parameterized

from apd_jax.report import page


class Page(html.parser.HTMLParser):
    """Elements and text of a page.

    Attributes:
      elements: (tag, attributes) in order.
      texts: tag -> text inside each of its elements.
    """

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        self.handle_data(" " if tag in ("td", "th", "dt", "dd") else "")
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        inside = set(self._open)
        for tag in inside & {"script", "style"} or inside:
            self.texts[tag][-1] += data

    def find(self, tag):
        """Attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def words(text):
    """Text with its white space made single."""
    return re.sub(r" ([.,;:])", r"\1", " ".join(text.split()))


class RenderTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.arguments = report_example.arguments()

    def render(self, **changes):
        text = page.render_report(**{**self.arguments, **changes})
        return text, Page(text)

    def test_says_what_happened(self):
        _, page = self.render()
        (body,) = page.texts["body"]
        for part in (
            "Toy model of superposition 4-2",
            "FAIL 1 of 2 checks failed. 2 of 3 seeds solved it; not solved by seed 8.",
            "Components point along the features MMCS, mean over seeds 0.98996 ≥ 0.99",
            "Components add up faithfulness MSE, mean over seeds 2.20e−6 ≤ 1e−5",
            "0.946 ± 0.074",
            "8 ✗ no 2.70e−6 0.8412 3",
            "7 ✓ yes 2.10e−6 0.9981 4",
            "wandb.mode",
            "jax 0.10.2, numpy 2.4.6",
            "Linux, 2 CPU cores",
            self.arguments["command"],
        ):
            self.assertIn(part, words(body))

    def test_all_checks_met(self):
        results = report_example.results()
        results["verdicts"] = results["verdicts"][:1]
        _, page = self.render(results=results)
        self.assertIn("PASS 1 of 1 checks met", words(page.texts["header"][0]))

    def test_nothing_hostile_becomes_markup(self):
        results = report_example.results()
        hostile = report_example.HOSTILE
        results["name"] = results["machine"] = results["versions"]["jax"] = hostile
        results["seeds"][0][hostile] = 1.0
        results["seeds"][0]["seed"] = hostile
        results["verdicts"][0] |= {"description": hostile, "value": hostile, "name": hostile}
        results["verdicts"][0]["threshold"] = hostile
        results["comparison"][0] = dict.fromkeys(results["comparison"][0], hostile)
        results["config"][hostile] = hostile
        browser = dict(self.arguments["browser"], inputs=hostile, seed=hostile)
        browser["sites"][0]["name"] = hostile
        _, page = self.render(results=results, browser=browser, command=hostile)
        _, plain = self.render()
        for tag in ("script", "img"):
            self.assertLen(page.find(tag), len(plain.find(tag)))
        for _, attributes in page.elements:
            self.assertEmpty([name for name in attributes if name.startswith("on")])
        self.assertIn(hostile, page.texts["body"][0])

    def test_loads_nothing(self):
        text, page = self.render()
        for tag, attributes in page.elements:
            for name in ("src", "href", "srcset", "action", "data", "poster"):
                value = attributes.get(name, "#")
                self.assertTrue(value.startswith(("#", "data:")), (tag, name, value[:80]))
        style = "".join(page.texts["style"])
        self.assertNotRegex(style, r"url\(|@import")
        self.assertNotIn("://", re.sub(r"http://www\.w3\.org/2000/svg", "", text))

    def test_policy_allows_this_script_alone(self):
        for browser in (self.arguments["browser"], None):
            text, page = self.render(browser=browser)
            policy = next(meta["content"] for meta in page.find("meta") if "http-equiv" in meta)
            self.assertIn("default-src 'none'", policy)
            script = re.search(r"<script>(.*?)</script>", text, re.DOTALL).group(1)
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            self.assertIn(f"script-src 'sha256-{digest}'", policy)

    def test_data_blocks_are_json(self):
        self.arguments["browser"]["inputs"] = "</script ><!--<script>&amp;\u2028"
        text, _ = self.render()
        blocks = re.findall(r'<script type="application/json" id="([a-z-]+)">(.*?)</script>', text)
        data = {name: json.loads(block) for name, block in blocks}
        for block in blocks:
            self.assertNotRegex(block[1], "[<>&\u2028]")
        self.assertEqual(data["browser-data"], self.arguments["browser"])
        self.assertEqual(data["chart-data"]["seeds"], ["7", "8", "9"])
        total = data["chart-data"]["charts"][0]
        self.assertEqual(total["steps"], list(range(200, 2001, 200)))
        self.assertEqual(total["values"][1][0], 0.025)

    def test_failed_seeds_are_marked_in_the_curves(self):
        text, page = self.render()
        failed = [a["data-seed"] for a in page.find("path") if a.get("class") == "line failed"]
        self.assertEqual(set(failed), {"1"})
        self.assertIn("dashed lines", text)

    def test_figures_are_embedded_at_their_size(self):
        _, page = self.render()
        images = page.find("img")
        sources = [base64.b64decode(i["src"].split(",")[1]) for i in images if "src" in i]
        self.assertEqual(sources, [panel.png for panel in self.arguments["panels"]])
        sizes = [(i["width"], i["height"]) for i in images if "src" in i]
        # 1800 pixels at 5906 a metre (150 an inch) are 12 inches.
        self.assertEqual(sizes, [("600", "400"), ("1380", "230")])

    def test_parts_may_be_missing(self):
        results = report_example.results()
        for key in ("verdicts", "comparison", "variant", "machine"):
            del results[key]
        for seed in results["seeds"]:
            del seed["solved"]
        text, page = self.render(
            results=results, metrics=[], target_metrics=[], panels=[], browser=None, command=""
        )
        self.assertNotIn("browser-data", text)
        self.assertEmpty(page.find("pre"))
        ids = {attributes.get("id") for attributes in page.find("section")}
        self.assertEqual(ids, {"setup", "seeds", "reproduce"})

    def test_gaps_are_named(self):
        gaps = ["a.jsonl lacks 1 row.", "<b>"]
        for metrics in ([], report_example.metrics()):
            _, page = self.render(metrics=metrics, target_metrics=[], gaps=gaps)
            for gap in gaps:
                self.assertIn(gap, words(page.texts["body"][0]))
            self.assertIn("curves", {attributes.get("id") for attributes in page.find("section")})

    def test_not_finite_numbers_are_shown(self):
        results = report_example.results()
        results["seeds"][1]["mmcs"] = results["summary"]["mmcs_mean"] = math.nan
        results["verdicts"][1]["value"] = math.nan
        metrics = [{"step": 1, "loss/total": [math.inf, 1.0, math.nan]}]
        _, page = self.render(results=results, metrics=metrics)
        self.assertIn("8 ✗ no 2.70e−6 NaN 3", words(page.texts["body"][0]))

    def test_links_of_the_contents_lead_somewhere(self):
        _, page = self.render()
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        self.assertLen(ids, len(set(ids)))
        for link in page.find("a"):
            self.assertIn(link["href"].removeprefix("#"), ids)


if __name__ == "__main__":
    absltest.main()
