"""Draw the effect of the two norms of the simplicity loss on the identity map.

python docs/simplicity.py    # run the decompositions missing in docs/results/linear_map/, and draw

The map has 10 sparse inputs and 10 components of full rank. Rank 1 and size 1 are perfect.
"""

import itertools
import json
import pathlib

import jax
from matplotlib.figure import Figure

from apd_jax import Coefficients, decompose
from apd_jax.plotting import style
from apd_jax.studies.linear_map.measures import evaluate_linear_map
from apd_jax.studies.linear_map.network import LinearMap

DOCS = pathlib.Path(__file__).parent
NUMBERS = DOCS / "results" / "linear_map" / "simplicity_norms.json"
IMAGE = DOCS / "images" / "simplicity_norms.png"
NORMS = {
    "schatten": ("Schatten (the paper's)", style.ORANGE, "o-"),
    "schatten_over_frobenius": ("Schatten over Frobenius", style.BLUE, "s-"),
}
COEFFICIENTS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TASK = LinearMap()


def measure(norm: str, coefficient: float) -> dict[str, float]:
    """Decompose the identity map with a coefficient of the simplicity loss, and measure it."""
    found = decompose(
        TASK.target(TASK.init(jax.random.key(0))),
        TASK.inputs,
        num_components=10,
        topk=0.5,
        steps=3000,
        batch_size=512,
        learning_rate=1e-2,
        schatten_p=1.0,
        simplicity_norm=norm,
        coefficients=Coefficients(faithfulness=1.0, minimality=1.0, simplicity=coefficient),
        chunk_steps=1000,
    )
    numbers, _ = evaluate_linear_map(TASK, found, key=jax.random.key(1), samples=10_000)
    kept = ("effective_rank", "ml2r", "mmcs", "features_recovered", "relative_error")
    row = {"norm": norm, "coefficient": coefficient, **{key: numbers[key] for key in kept}}
    print(row, flush=True)
    return row


@style.styled
def draw(rows: list[dict]) -> Figure:
    """Draw rank and size of the components against the coefficient."""
    figure = style.new_figure(3.2, width=8.0)
    left, right = figure.subplots(1, 2)
    for norm, (label, color, marks) in NORMS.items():
        own = [row for row in rows if row["norm"] == norm]
        x = [row["coefficient"] for row in own]
        for axes, key in ((left, "effective_rank"), (right, "ml2r")):
            axes.plot(x, [row[key] for row in own], marks, color=color, label=label, markersize=5)
    for axes, word in (
        (left, "effective rank of components"),
        (right, "size of rows in their component"),
    ):
        axes.axhline(1, color=style.FAINT, linewidth=1, zorder=0)
        axes.set(xscale="log", xlabel="coefficient of simplicity", ylabel=word)
    left.set_ylim(0.95, None)
    right.set_ylim(0.95, 1.02)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure


def main() -> None:
    """Measure missing entries, save them, and draw the figure."""
    rows = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else []
    known = {(row["norm"], row["coefficient"]) for row in rows}
    for norm, coefficient in itertools.product(NORMS, COEFFICIENTS):
        if (norm, coefficient) not in known:
            rows.append(measure(norm, coefficient))
            NUMBERS.parent.mkdir(exist_ok=True)
            NUMBERS.write_text(json.dumps(rows, indent=1) + "\n")
    IMAGE.write_bytes(style.to_png(draw(rows)))


if __name__ == "__main__":
    main()
