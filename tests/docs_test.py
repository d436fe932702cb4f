"""Documentation: code runs and prints what the page says, diffs apply, tables are current."""

import contextlib
import io
import pathlib
import re
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest

from apd_jax.studies.task import Task

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
        wanted = [name for name in dir(Task) if not name.startswith("_")]
        self.assertEmpty([name for name in wanted if not hasattr(task, name)])
        target = task.target(task.init(jax.random.key(0)))
        self.assertEqual(list(target.sites), ["w"])
        np.testing.assert_allclose(jnp.linalg.norm(target(jnp.eye(6)), axis=1), 1, rtol=1e-5)

    def test_tables_of_results_are_current(self):
        page = (DOCS / "results.md").read_text()
        self.assertEqual(runpy.run_path(str(DOCS / "tables.py"))["fill"](page), page)

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
