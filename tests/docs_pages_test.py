"""Documentation: commands can be read, files that it names exist, code of every page runs."""

import contextlib
import io
import pathlib
import re
import shlex
import tempfile

import fresh_flags
import jax
import networks
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax import main, studies
from apd_jax.run.config import read_config

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/*.md")])
RUN = re.compile(r"(?:apd-jax|apd_jax\.main|launch/(?:run|tpu_vm|slurm)\.sh) (--config=[^`\"\n#]+)")
FILE = re.compile(r"(?:python|bash|sbatch|jupyter lab) ([\w./-]+\.(?:py|sh|ipynb))")
# Pages whose code other tests run: the whole page, or the parts that stand for themselves.
ELSEWHERE = {
    "README.md": "own_run_test.py",
    "your-own-network.md": "docs_test.py",
    "extending.md": "docs_test.py",
    "pytorch.md": "torch_docs_test.py",
    "data.md": "torch_docs_test.py",
    "language-models.md": "torch_docs_test.py",
    "scaling.md": "plan_test.py",
}


def blocks(page, kind="python"):
    """The code blocks of a page."""
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


class CommandsTest(parameterized.TestCase):
    def test_every_run_can_be_started(self):
        commands = sorted({match[1] for page in PAGES for match in RUN.finditer(page.read_text())})
        self.assertGreater(len(commands), 40)
        commands.remove("--config=planes")  # the reader writes this one, by docs/extending.md
        for command in commands:
            with self.subTest(command):
                flags = [
                    word
                    for word in shlex.split(command)
                    if word.startswith(("--config", "--workdir"))
                ]
                with fresh_flags.parsed(*flags):
                    config = main._CONFIG.value
                    read_config(config, studies.find(config.name))

    def test_files_exist(self):
        for page in PAGES:
            for match in FILE.finditer(page.read_text()):
                self.assertTrue((ROOT / match[1]).is_file(), f"{page.name}: {match[1]}")

    def test_every_public_name_is_in_the_reference(self):
        page = (ROOT / "docs" / "api.md").read_text()
        documented = re.findall(r"^::: apd_jax\.api\.(\w+)$", page, re.MULTILINE)
        self.assertCountEqual(documented, apd_jax.__all__)


class Shorter:
    """The package, with trainings of a few steps; the search for k has tests of its own."""

    SHORT = {"steps": 4, "batch_size": 64, "refine": {"every": 0}}

    def __getattr__(self, name):
        if name == "decompose":
            return self._decompose
        return getattr(apd_jax, name)

    def _decompose(self, *arguments, **options):
        options["topk"] = 1.0 if options["topk"] == "auto" else options["topk"]
        return apd_jax.decompose(*arguments, **options | self.SHORT)


def _decomposition(seed=0):
    target = networks.tms(features=5)
    x = apd_jax.SparseFeatures(5, 0.05)(jax.random.key(2), 64)
    return Shorter().decompose(target, x, num_components=5, topk=0.3, seed=seed)


def evidence_page():
    """The names that docs/evidence.md assumes, and the runs of its commands."""
    first, second, third = (_decomposition(seed) for seed in range(3))
    for name in ("good", "bad", "control"):
        first.save(f"runs/{name}/components/seed_0")
    x = apd_jax.SparseFeatures(5, 0.05)(jax.random.key(3), 64)
    return {"found": first, "x": x, "labels": None} | dict(
        zip(("first", "second", "third"), (first, second, third), strict=True)
    )


def recipes_page():
    """The names that docs/recipes.md assumes."""
    return {"target": networks.tms(), "data": jax.random.normal(jax.random.key(0), (512, 4))}


class PagesTest(parameterized.TestCase):
    def test_every_page_with_code_is_run(self):
        pages = {page.name for page in PAGES if blocks(page)}
        self.assertEqual(pages - ELSEWHERE.keys(), {"evidence.md", "index.md", "recipes.md"})
        for page, test in ELSEWHERE.items():
            self.assertIn(page, (ROOT / "tests" / test).read_text())

    def test_quick_start_has_the_lines_of_the_readme(self):
        (code,) = blocks(ROOT / "docs" / "index.md")
        self.assertIn(code, blocks(ROOT / "README.md"))

    @parameterized.named_parameters(
        ("evidence", "evidence.md", evidence_page), ("recipes", "recipes.md", recipes_page)
    )
    @pytest.mark.slow
    def test_code_runs(self, name, prepare):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            names = prepare() | {"apd_jax": Shorter()}
            for code in blocks(ROOT / "docs" / name):
                code = code.replace("4096", "64")  # a block of examples
                code = re.sub(r"^import (.*), apd_jax$", r"import \1", code, flags=re.MULTILINE)
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(code, name, "exec"), names)


if __name__ == "__main__":
    absltest.main()
