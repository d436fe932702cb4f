"""What may import what: the mathematics knows nothing of runs, files, reports and figures."""

import ast
import pathlib

from absl.testing import absltest

PACKAGE = pathlib.Path(__file__).parent.parent / "apd_jax"
MATHEMATICS = ("sites", "attribution", "ambient", "checks", "components", "errors", "fields")
MATHEMATICS += ("forward", "grouped", "inputs", "losses", "objective", "optimizers", "randomness")
MATHEMATICS += ("selection", "settings", "starts", "terms", "train_step")
FORBIDDEN = ("matplotlib", "ml_collections", "jinja2", "orbax", "absl", "tqdm")
FORBIDDEN += tuple(f"apd_jax.{room}" for room in ("run", "runtime", "report", "studies", "loop"))


def imported(path):
    """Full names of everything that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


class RoomsTest(absltest.TestCase):
    def test_mathematics(self):
        for name in MATHEMATICS:
            folder = PACKAGE / name
            paths = list(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
            self.assertNotEmpty(paths)
            for path in paths:
                for module in imported(path):
                    for prefix in FORBIDDEN:
                        self.assertFalse(
                            f"{module}.".startswith(f"{prefix}."), f"{path} imports {module}"
                        )


if __name__ == "__main__":
    absltest.main()
