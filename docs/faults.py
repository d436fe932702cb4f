"""Draw faults of decompositions, and the effect of a round of refinement.

python docs/faults.py

`docs/images/faults.png` has one fault per panel, each from a TMS 5-2 without rounds of refinement,
after 2500 steps of the robust settings with the changes in the panel's title. The panel shows the
first of eight seeds that has the fault. `docs/images/round.png` shows a TMS 40-10 after 400 steps
of the robust settings, and after one round. Letters: C components, F features, S seeds.
"""

import pathlib
import runpy
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from apd_jax import randomness
from apd_jax.run.setup import make_setup
from apd_jax.runtime import loop
from apd_jax.studies import pretraining
from apd_jax.training.trainer import Trainer

ROOT = pathlib.Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
STEPS = 400
SITE = "linear1/kernel"


class Fault(NamedTuple):
    """A fault, settings that cause it, and a function of shares [C, F] that detects it."""

    name: str
    settings: dict[str, str | int | float]
    found: Callable[[np.ndarray], bool]


_LOW = {"coefficients.simplicity": 0.1, "num_components": 2, "topk": 0.23}
_FADELESS = {"schedules.simplicity": "constant"}
_HIGH = _FADELESS | {"coefficients.simplicity": 20.0}
FAULTS = (
    Fault("halved", _HIGH, lambda s: (s > 0.3).sum(0).max() > 1),
    Fault("merged", {"num_components": 4}, lambda s: (s > 0.7).sum(1).max() > 1),
    Fault("missing", {"topk": 0.08}, lambda s: s.max(0).min() < 0.3),
    Fault("dead", {}, lambda s: s.max(0).min() > 0.95 and s.max(1).min() < 0.3),
    Fault("always on", _LOW, lambda s: s.min(1).max() > 0.3),
    Fault("shrunk", _FADELESS, lambda s: s.max(0).min() > 0.94 and s.max() < 0.97),
)


def main() -> None:
    panels = []
    for fault in FAULTS:
        changed = fault.settings | {"seeds": 8, "steps": 2500, "refine.every": 0}
        _, targets, states = _train("5-2-robust", changed)
        tables = [_shares(loop.pick(targets, i), loop.pick(states, i).components) for i in range(8)]
        seed = next(i for i, table in enumerate(tables) if fault.found(table))
        print(fault.name, f"seed {seed}")
        panels.append(tables[seed])
    _draw_faults(panels).savefig(IMAGES / "faults.png", dpi=80)

    trainer, targets, states = _train("40-10-robust", {"seeds": 1, "steps": STEPS}, of_steps=8000)
    target, state = loop.pick(targets, 0), loop.pick(states, 0)
    key = randomness.step_key(randomness.root(trainer.seeds[0]), STEPS)
    after = jax.jit(trainer.between.function)(target, state, key)
    print(after.refined.counts)
    tables = [_shares(target, s.components) for s in (state, after)]
    _draw_round(tables).savefig(IMAGES / "round.png", dpi=80)


def _train(variant: str, changed: dict, of_steps: int | None = None):
    """Trainer, targets and states [S] after `steps` steps of a training of `of_steps`."""
    config = runpy.run_path(str(ROOT / "configs" / "tms.py"))["get_config"](variant)
    steps = changed["steps"]
    config.update_from_flattened_dict(changed | {"steps": of_steps or steps})
    setup = make_setup(config)
    trained = _run(pretraining.TargetTrainer(setup.task, setup.training, setup.seeds), 500)
    targets = jax.vmap(setup.task.target)(trained.params)
    trainer = Trainer(setup.settings, targets, setup.task.inputs, setup.seeds)
    return trainer, targets, _run(trainer, steps, steps)


def _run(training: loop.Training, chunk_steps: int, steps: int | None = None):
    """The state of a training after some of its steps, or after all of them."""
    return loop.run_steps(training, training.init_state(), chunk_steps=chunk_steps, steps=steps)


def _shares(target, components) -> np.ndarray:
    """Return the share of each feature's vector in each component, sorted by component, [C, F]."""
    weight, parts = target.weights[SITE], components[SITE].matrices()
    shares = jnp.einsum("cfh,fh->cf", parts, weight) / jnp.sum(jnp.square(weight), axis=1)
    shares = np.asarray(shares)
    largest = shares.max(axis=1)
    return shares[np.lexsort((-largest, np.where(largest > 0.3, shares.argmax(axis=1), 99)))]


def _image(axes, table: np.ndarray, title: str):
    axes.set(title=title, xlabel="feature", ylabel="component")
    return axes.imshow(table, cmap="magma_r", vmin=0, vmax=1, aspect="auto")


def _draw_faults(panels: list[np.ndarray]) -> Figure:
    figure = Figure(figsize=(11, 8), layout="constrained")
    places = figure.subplots(2, 3).flat
    for axes, fault, table in zip(places, FAULTS, panels, strict=True):
        settings = "\n".join(f"{name}={value}" for name, value in fault.settings.items())
        image = _image(axes, table, f"{fault.name}\n{settings or 'as configured'}")
        axes.title.set_fontsize(9)
        axes.set_xticks(range(table.shape[1]))
        axes.set_yticks(range(table.shape[0]))
        for (row, column), share in np.ndenumerate(table):
            if abs(share) >= 0.1:
                color = "white" if share > 0.5 else "black"
                axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=color)
    figure.colorbar(image, ax=figure.axes, label="share of the feature's vector")
    return figure


def _draw_round(tables: list[np.ndarray]) -> Figure:
    figure = Figure(figsize=(11, 7), layout="constrained")
    titles = (f"after {STEPS} steps", "after a round of refinement")
    for axes, table, title in zip(figure.subplots(1, 2), tables, titles, strict=True):
        image = _image(axes, table, title)
    figure.colorbar(image, ax=figure.axes, label="share of the feature's vector")
    return figure


if __name__ == "__main__":
    main()
