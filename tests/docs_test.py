"""Documentation: code runs and prints what the page says, diffs apply, tables are current."""

import contextlib
import io
import json
import pathlib
import re
import runpy

import jax
import jax.numpy as jnp
import numpy as np
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


class DocsTest(absltest.TestCase):
    def test_diffs_apply(self):
        found = list(hunks((DOCS / "extending.md").read_text()))
        self.assertGreater(len(found), 5)
        for path, before, after in found:
            self.assertEqual((DOCS.parent / path).read_text().count(before + "\n"), 1, before)
            self.assertNotEqual(before, after)

    def test_family_of_networks_is_made(self):
        blocks = re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(), re.DOTALL)
        names = {}
        exec(compile(blocks[1], "study.py", "exec"), names)
        task = names["STUDY"].task
        self.assertEqual(task.inputs(jax.random.key(0), 3).shape, (3, 6))
        target = task.target(task.init(jax.random.key(0)))
        self.assertEqual(list(target.sites), ["w"])
        np.testing.assert_allclose(jnp.linalg.norm(target(jnp.eye(6)), axis=1), 1, rtol=1e-5)

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

    def test_links_to_files_exist(self):
        root = DOCS.parent
        for page in (*root.glob("*.md"), *DOCS.glob("*.md"), *root.glob("*/README.md")):
            for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
                self.assertTrue((page.parent / link).exists(), f"{page.name}: {link}")

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
