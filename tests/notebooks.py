"""Notebooks of examples/: read, and executed with few steps."""

import pathlib
import re

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
ROOT = pathlib.Path(__file__).parents[1]


def read(name):
    """The notebook of that name."""
    return nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)


def execute(notebook):
    """Execute a notebook with few steps and no rounds, which take longest to compile."""
    for cell in notebook.cells:
        source = re.sub(r"(?<=steps=)2000|(?<=\"steps\": )2000", "20", cell.source)
        source = re.sub(r"\b(2000|1000)\b", "50", source).replace("20_000", "600")
        cell.source = source.replace("steps=20)", 'steps=20, refine={"every": 0})')
    nbclient.NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
