"""Texts that come with Python: the docstrings of the standard library."""

import ast
import inspect
import pathlib
import sysconfig
from typing import NamedTuple

_SKIPPED = ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo")


class Text(NamedTuple):
    """The first paragraph of a docstring, and the top-level module that it is from."""

    module: str
    text: str


def texts(words: int = 8) -> list[Text]:
    """Return every docstring's first paragraph of at least `words` words, without repetitions."""
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, Text] = {}
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if any(part in _SKIPPED for part in parts):
            continue
        for paragraph in _paragraphs(path):
            if len(paragraph.split()) >= words:
                found.setdefault(paragraph, Text(parts[0], paragraph))
    return list(found.values())


def _paragraphs(path: pathlib.Path) -> list[str]:
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    tree = ast.parse(path.read_bytes())
    docs = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    return [" ".join(inspect.cleandoc(doc).split("\n\n")[0].split()) for doc in docs if doc]
