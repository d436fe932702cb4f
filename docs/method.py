"""Draw the pictures of docs/method.md from a finished run.

apd-jax --config=tms:5-2 && python docs/method.py runs/tms-5-2

Letters: B examples, C components, F features.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from matplotlib.figure import Figure

import apd_jax
from apd_jax.plotting import style
from apd_jax.studies.tms.network import TMS

IMAGES = pathlib.Path(__file__).parent / "images"
SITE = "linear1/kernel"
FEATURES, SHOWN = 5, 10


def main(run: str) -> None:
    found = apd_jax.load(f"{run}/components/seed_0", TMS(FEATURES, 2))
    lines = pathlib.Path(run, "metrics.jsonl").read_text().splitlines()
    x = apd_jax.SparseFeatures(FEATURES, 0.05)(jax.random.key(1), 2048)
    figures = {
        "sum": draw_sum(found),
        "attributions": draw_attributions(found, x),
        "outputs": draw_outputs(found, x),
        "losses": draw_losses(found, [json.loads(line) for line in lines]),
    }
    for name, figure in figures.items():
        figure.savefig(IMAGES / f"method_{name}.png", dpi=110)


def order(found: apd_jax.Decomposition) -> list[int]:
    """The components in the order of the features that they hold."""
    norms = np.linalg.norm(found.components[SITE].matrices(), axis=-1)  # [C, F]
    return list(np.argsort(norms.argmax(axis=1), kind="stable"))


@style.styled
def draw_sum(found: apd_jax.Decomposition) -> Figure:
    """The matrix of the target as the sum of the components."""
    target = np.asarray(found.target.params["linear1"]["kernel"])
    parts = np.asarray(found.components[SITE].matrices())[order(found)]
    figure = Figure(figsize=(9, 2.3), layout="constrained")
    panels = figure.subplots(1, len(parts) + 1)
    limit = abs(target).max()
    titles = ["target", *(f"component {i}" for i in range(len(parts)))]
    for i, (axes, matrix, title) in enumerate(zip(panels, [target, *parts], titles, strict=True)):
        image = axes.imshow(matrix, vmin=-limit, vmax=limit, cmap="RdBu", aspect="auto")
        axes.set(title=title, xlabel="hidden unit", xticks=(0, 1), yticks=range(FEATURES))
        axes.set_ylabel("feature" if i == 0 else "")
        sign = "=" if i == 0 else "+" if i < len(parts) else ""
        axes.text(1.18, 0.5, sign, transform=axes.transAxes, fontsize=15, ha="center", va="center")
    figure.colorbar(image, ax=panels, shrink=0.8)
    return figure


@style.styled
def draw_attributions(found: apd_jax.Decomposition, x: jax.Array) -> Figure:
    """Inputs, attributions of the components, and which of them are active."""
    shown = rows_with_features(x)
    columns = order(found)
    tables = {
        "input x": (np.asarray(x)[shown], "feature"),
        "attribution of each component": (found.attributions(x)[shown][:, columns], "component"),
        "active: the largest of the whole batch": (found.mask(x)[shown][:, columns], "component"),
    }
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, (title, (table, label)) in zip(panels, tables.items(), strict=True):
        axes.imshow(table, cmap="Blues", vmin=0, aspect="auto")
        axes.set(title=title, xlabel=label, xticks=range(FEATURES), yticks=range(len(shown)))
    panels[0].set_ylabel("example of the batch")
    return figure


@style.styled
def draw_outputs(found: apd_jax.Decomposition, x: jax.Array) -> Figure:
    """Outputs of the target, and of the active components alone."""
    shown = rows_with_features(x)[:4]
    outputs, alone = found.target(x), found(x)
    figure = Figure(figsize=(9, 2.5), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True)
    for axes, row in zip(panels, shown, strict=True):
        places = np.arange(FEATURES)
        colors = style.ROLE_COLORS
        axes.bar(places - 0.2, outputs[row], 0.4, color=colors["target"], label="target")
        axes.bar(places + 0.2, alone[row], 0.4, color=colors["topk"], label="active components")
        active = int(found.mask(x)[row].sum())
        of_one = "component" if active == 1 else "components"
        axes.set(title=f"{active} active {of_one}", xlabel="output", xticks=places)
    panels[0].legend()
    return figure


@style.styled
def draw_losses(found: apd_jax.Decomposition, rows: list[dict]) -> Figure:
    """The three losses during training, and the singular values of the components after it."""
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    curves, spectra = figure.subplots(1, 2)
    for name, color in zip(
        ("faithfulness", "minimality", "simplicity"), style.FEW_COLORS, strict=False
    ):
        steps = [row["step"] for row in rows if f"loss/{name}" in row]
        values = [np.mean(row[f"loss/{name}"]) for row in rows if f"loss/{name}" in row]
        curves.plot(steps, values, color=color, label=name)
    curves.set(title="losses", xlabel="step", yscale="log")
    curves.legend(loc="upper right")
    values = np.linalg.svd(found.components[SITE].matrices(), compute_uv=False)[order(found)]
    for i, (first, second) in enumerate(values):
        spectra.bar([i - 0.2, i + 0.2], [first, second], 0.4, color=[style.BLUE, style.SKY])
    spectra.set(title="singular values of each component", xlabel="component")
    spectra.set_xticks(range(len(values)))
    return figure


def rows_with_features(x: jax.Array) -> np.ndarray:
    """The first examples of a batch with an active feature."""
    return np.flatnonzero(np.asarray(x).sum(axis=1) > 0.3)[:SHOWN]


if __name__ == "__main__":
    main(*sys.argv[1:])
