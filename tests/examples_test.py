"""The examples run, scripts and notebooks, with a few steps."""

import pathlib
import re
import runpy
import sys

import notebooks
import pytest

ROOT = pathlib.Path(__file__).parents[1]
DRAWING = ("modular_addition", "digits", "induction")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script with a few steps, from another directory, and return its output."""

    def run_script(name, *flags):
        path = str(ROOT / "examples" / f"{name}.py")
        monkeypatch.chdir("/")
        monkeypatch.setattr(sys, "argv", [path, "--quick", *map(str, flags)])
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return run_script


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWING)
def test_script_draws_its_figure(name, run, tmp_path):
    assert "accuracy" in run(name, "--images", tmp_path)
    assert (tmp_path / f"{name}.png").stat().st_size > 5000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["equinox_mlp", "nnx_mlp"])
def test_short_script_prints_sites_and_components(name, run):
    printed = run(name)
    assert "decomposed:" in printed and "component of each input" in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first_steps", "reading_evidence"])
def test_notebook_with_few_steps(name):
    notebook = notebooks.read(name)
    for cell in notebook.cells:
        cell.source = cell.source.replace("1024", "64").replace("steps=(20,)", "steps=(2,)")
        cell.source = cell.source.replace("adversarial_20", "adversarial_2")
    notebooks.execute(notebook)
    printed = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert len(printed) >= 4, printed


def test_kept_outputs_of_the_first_steps_have_a_component_for_every_sign():
    cells = notebooks.read("first_steps").cells
    found = [cell for cell in cells if cell.source.endswith(".reshape(2, 5)")]
    # Absolute values with Equinox, squares with Flax NNX.
    for cell, least in zip(found, (10, 9), strict=True):
        (result,) = [out for out in cell.outputs if out.output_type == "execute_result"]
        numbers = re.findall(r"\d+", result["data"]["text/plain"])[:10]
        assert len(set(numbers)) >= least, numbers


def test_every_example_is_described():
    described = (ROOT / "docs" / "examples.md").read_text()
    for path in (ROOT / "examples").iterdir():
        if path.suffix in (".py", ".ipynb"):
            assert path.name in described, path.name
