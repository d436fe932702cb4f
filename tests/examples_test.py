"""The examples run: scripts with a few steps, the notebook as it is."""

import os
import pathlib
import re
import subprocess
import sys

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
DRAWING = ("modular_addition", "digits", "induction")


def run(name, *flags):
    """Run a script for a few steps, from another directory; return what it printed."""
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--quick", *map(str, flags)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWING)
def test_script_draws_its_figure(name, tmp_path):
    assert "accuracy" in run(name, "--images", tmp_path)
    assert (tmp_path / f"{name}.png").stat().st_size > 5000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["equinox_mlp", "nnx_mlp"])
def test_short_script_prints_sites_and_components(name):
    printed = run(name)
    assert "decomposed:" in printed and "component of each input" in printed


@pytest.mark.slow
def test_notebook_finds_components_for_the_signs_of_inputs():
    notebook = nbformat.read(ROOT / "examples" / "first_steps.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()
    found = [cell for cell in notebook.cells if cell.source.endswith(".reshape(2, 5)")]
    # Absolute values with Equinox, squares with Flax NNX: rounding decides where a training ends.
    for cell, least in zip(found, (9, 7), strict=True):
        (result,) = [out for out in cell.outputs if out.output_type == "execute_result"]
        text = result["data"]["text/plain"]  # the figure of the cell above may come after it
        numbers = re.findall(r"\d+", text)[:10]
        assert len(set(numbers)) >= least, text


def test_every_example_is_described():
    described = (ROOT / "docs" / "examples.md").read_text()
    for path in (ROOT / "examples").iterdir():
        if path.suffix in (".py", ".ipynb"):
            assert path.name in described, path.name
