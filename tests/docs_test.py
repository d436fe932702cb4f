"""Documentation: code runs and prints what the page says, diffs apply, tables are current."""

import contextlib
import io
import json
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import tempfile

import pytest
from absl.testing import absltest

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def hunks(text):
    """(file, lines before, lines after) of every hunk of the diffs in a page."""
    for block in re.findall(r"```diff\n(.*?)```", text, re.DOTALL):
        for section in re.split(r"^# ", block, flags=re.MULTILINE)[1:]:
            path, _, rest = section.partition("\n")
            for hunk in re.split(r"^@@.*\n", rest, flags=re.MULTILINE)[1:]:
                lines = [line or " " for line in hunk.splitlines()]
                yield (
                    path,
                    *("\n".join(x[1:] for x in lines if x[0] in kept) for kept in (" -", " +")),
                )


def sections(page):
    """The anchors of a page's headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", head.lower().replace("`", "")) for head in heads]
    return [head.replace(" ", "-") for head in plain]


# The loss term and the attribution method that docs/extending.md adds; scores against a loop.
RECIPES = """
import os
import jax, jax.numpy as jnp, numpy as np
import apd_jax

assert apd_jax.__file__.startswith(os.getcwd()), apd_jax.__file__
x = jax.random.uniform(jax.random.key(0), (64, 4))
network = lambda params, x: jax.nn.relu(x @ params["w"])
found = apd_jax.decompose(
    apd_jax.Target(network, {"w": jnp.eye(4)}, inputs=x), x, num_components=4, rank=1, topk=1.0,
    steps=20, coefficients={"overlap": 1.0}, attribution="solo", workdir="own",
)
matrices = np.asarray(found.components["w"].matrices())
alone = [np.square(np.maximum(np.asarray(x) @ one, 0)).mean(1) for one in matrices]
np.testing.assert_allclose(found.attributions(x), np.stack(alone, 1), atol=1e-6)
"""


class DocsTest(absltest.TestCase):
    def test_diffs_apply(self):
        found = list(hunks((DOCS / "extending.md").read_text()))
        self.assertGreater(len(found), 5)
        for path, before, after in found:
            self.assertEqual((DOCS.parent / path).read_text().count(before + "\n"), 1, before)
            self.assertNotEqual(before, after)

    def extended(self):
        """A copy of the package with every recipe of the page applied."""
        text = (DOCS / "extending.md").read_text()
        top = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())).resolve()
        for name in ("apd_jax", "configs"):
            shutil.copytree(
                DOCS.parent / name, top / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        for path, before, after in hunks(text):
            place = top / path
            place.write_text(place.read_text().replace(before + "\n", after + "\n"))
        config, study = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        (top / "configs" / "planes.py").write_text(config)
        folder = top / "apd_jax" / "studies" / "planes"
        folder.mkdir()
        (folder / "__init__.py").write_text('"""A rotation."""\n')
        (folder / "study.py").write_text(study)
        return top

    @pytest.mark.slow
    def test_recipes_work(self):
        top = self.extended()
        small = [f"--config.{name}=64" for name in ("steps", "evidence_samples")]
        run = ("-m", "apd_jax.main", "--config=configs/planes.py", "--workdir=run", *small)
        for arguments in (("-c", RECIPES), run):
            done = subprocess.run(
                [sys.executable, *arguments],
                cwd=top,
                env=os.environ | {"PYTHONPATH": str(top)},
                capture_output=True,
                text=True,
                check=False,
            )
            self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        rows = (top / "own" / "metrics.jsonl").read_text().splitlines()
        self.assertGreater(json.loads(rows[-1])["loss/overlap"][0], 0)
        self.assertIn("different directions", (top / "own" / "report.html").read_text())
        (verdict,) = json.loads((top / "run" / "results.json").read_text())["verdicts"]
        self.assertEqual(verdict["name"], "purity")
        self.assertTrue((top / "run" / "report.html").is_file())

    def test_tables_of_results_are_current(self):
        page = (DOCS / "results.md").read_text()
        self.assertEqual(runpy.run_path(str(DOCS / "tables.py"))["fill"](page), page)

    def test_the_table_of_evidence_has_every_run(self):
        tables = runpy.run_path(str(DOCS / "tables.py"))
        numbers = {"evidence_own": 0.125, "evidence_l0": 2.0}
        kept = [
            {
                "command": "bash launch/run.sh --config=a.py:b",
                "seeds": [{"seed": 0} | numbers, {"seed": 1, "evidence_own": 0.25}, {"seed": 2}],
                "evidence_verdicts": {
                    "0": {"passed": 11, "failed": ["size"]},
                    "2": {"passed": 0, "failed": ["not measured"]},
                },
            }
        ]
        runs = [
            {"title": "one", "command": "python -m apd_jax.main --config=a.py:b"},
            {"title": "other", "command": "python examples/other.py"},
        ]
        lines = tables["evidence_of_all"](runs, kept).splitlines()
        self.assertTrue(lines[2].startswith("| one | 2 of 3 | 0.125 to 0.25 | – |"), lines[2])
        self.assertTrue(lines[2].endswith("| size (1), not measured (1) |"), lines[2])
        self.assertTrue(lines[3].startswith("| other | not measured | – |"), lines[3])

    def test_runs_of_the_table_of_evidence_exist(self):
        for run in json.loads((DOCS / "evidence_runs.json").read_text()):
            config = re.search(r"--config=(configs/\w+\.py):(\S+)", run["command"])
            path = config[1] if config else run["command"].split()[1]
            self.assertTrue((DOCS.parent / path).is_file(), path)
            if config:
                runpy.run_path(str(DOCS.parent / path))["get_config"](config[2])

    def test_links_exist(self):
        root = DOCS.parent
        for page in (*root.glob("*.md"), *DOCS.glob("*.md"), *root.glob("*/README.md")):
            for link, section in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", page.read_text()):
                place = page.parent / link if link else page
                self.assertTrue(place.exists(), f"{page.name}: {link}")
                if section:
                    self.assertIn(section, sections(place), f"{page.name}: {link}")

    def test_readme_is_short(self):
        self.assertLessEqual(len((DOCS.parent / "README.md").read_text().split()), 900)

    @pytest.mark.slow
    def test_your_own_network(self):
        text = (DOCS / "your-own-network.md").read_text()
        blocks = re.findall(r"```(python|text)\n(.*?)```", text, re.DOTALL)
        names, printed = {}, ""
        for kind, block in blocks:
            if kind == "text":
                self.assertEqual(printed, block)
                continue
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(block, "your_network.py", "exec"), names)
            printed = output.getvalue()


if __name__ == "__main__":
    absltest.main()
