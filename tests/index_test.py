"""The index of several runs: links, results, and what is not finished."""

import json
import pathlib
import subprocess
import tempfile

from absl.testing import absltest

from apd_jax.errors import UserError
from apd_jax.run import index

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = {
    "name": "tms",
    "variant": "5-2",
    "config": {"seed": 0},
    "seconds": {"target": 10.0, "decompose": 95.0, "evaluate": 15.0},
    "seeds": [{"seed": 0, "solved": True}, {"seed": 1, "solved": False}],
    "verdicts": [{"passed": True}, {"passed": False}],
    "comparison": [{"label": "M<C>S", "ours": "0.97", "paper": "0.998", "spd": None}],
}


class IndexTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        (self.root / "first").mkdir()
        (self.root / "first" / "results.json").write_text(json.dumps(RESULTS))
        (self.root / "second").mkdir()

    def test_finished_and_not_finished_runs(self):
        text = index.write(self.root).read_text()
        self.assertIn('<a href="first/report.html">', text)
        for words in ("1 of 2 checks met", "1 of 2 seeds solved it", "2 min", "0.97", "0.998"):
            self.assertIn(words, text)
        self.assertIn("M&lt;C&gt;S", text)
        self.assertIn("Not finished: second; rerun the command", text)
        self.assertEqual(sorted(p.name for p in self.root.iterdir())[1], "index.html")

    def test_order(self):
        (self.root / "second" / "results.json").write_text(
            json.dumps(RESULTS | {"variant": "40-10"})
        )
        text = index.write(self.root, ["second", "first"]).read_text()
        self.assertLess(text.index("second/report.html"), text.index("first/report.html"))

    def test_reports_without_results_are_linked(self):
        for name in ("sweep", "mine #1"):
            (self.root / name).mkdir()
            (self.root / name / "report.html").touch()
        (self.root / "third").mkdir()
        (self.root / "third" / "results.json").write_text(json.dumps(RESULTS))
        text = index.write(self.root).read_text()
        self.assertIn('<a href="sweep/report.html">sweep</a>', text)
        self.assertIn('<a href="mine%20%231/report.html">mine #1</a>', text)
        self.assertIn("Not finished: second; rerun", text)
        for name in ("first", "third"):  # of the same study and variant
            self.assertIn(f", in {name}</span>", text)

    def test_controls_are_called_so(self):
        config = {"seed": 0, "target": {"shuffled": True}}
        (self.root / "first" / "results.json").write_text(json.dumps(RESULTS | {"config": config}))
        text = index.write(self.root).read_text()
        self.assertIn("5-2: a control, its matrices shuffled</a>", text)

    def test_results_that_are_none(self):
        for content in ("{", "[]", "{}", '{"name": "none"}'):
            (self.root / "second" / "results.json").write_text(content)
            with self.assertRaisesRegex(UserError, "second/results.json holds no results of a run"):
                index.write(self.root)

    def test_the_script_refuses_other_arguments(self):
        done = subprocess.run(
            ["bash", ROOT / "launch" / "paper.sh", "--seeds=3"],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, 1)
        self.assertIn("got --seeds=3; expected --settings=robust", done.stderr)


if __name__ == "__main__":
    absltest.main()
