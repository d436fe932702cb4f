"""Draw docs/images/faults.png: components of a TMS 40-10 before and after a round of refinement.

python docs/faults.py    # 400 steps of configs/tms.py:40-10-robust with seed 0, then one round
"""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from apd_jax import loop, randomness
from apd_jax.decomposing import init_states, make_between, make_step, moves_of
from apd_jax.run.plan import make_plan
from apd_jax.studies import pretraining

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 400
SITE = "linear1/kernel"


def main() -> None:
    config = runpy.run_path(str(ROOT / "configs" / "tms.py"))["get_config"]("40-10-robust")
    plan = make_plan(config)
    settings, inputs, seeds = plan.settings, plan.task.inputs, plan.seeds
    trained = loop.run_steps(
        pretraining.make_step(plan.task, plan.training),
        jnp.zeros(seeds.shape),
        pretraining.init_state(plan.task, plan.training, seeds),
        seeds,
        steps=plan.training.steps,
        chunk_steps=500,
    )
    targets = jax.vmap(plan.task.target)(trained.params)
    state = loop.run_steps(
        make_step(settings, inputs),
        targets,
        init_states(settings, targets, seeds, inputs),
        seeds,
        steps=STEPS,
        chunk_steps=STEPS,
    )
    target, state = loop.pick(targets, 0), loop.pick(state, 0)
    key = randomness.step_key(randomness.root(seeds[0]), STEPS)
    after = jax.jit(make_between(settings, inputs).function)(target, state, key)
    print(moves_of(after))
    tables = [_shares(target, s.components) for s in (state, after)]
    _draw(tables).savefig(ROOT / "docs" / "images" / "faults.png", dpi=80)


def _shares(target, components) -> np.ndarray:
    """[C, F], the share of each feature's vector that each component holds, components sorted."""
    weight, parts = target.weights[SITE], components[SITE].matrices()
    shares = jnp.einsum("cfh,fh->cf", parts, weight) / jnp.sum(jnp.square(weight), axis=1)
    shares = np.asarray(shares)
    largest = shares.max(axis=1)
    return shares[np.lexsort((-largest, np.where(largest > 0.3, shares.argmax(axis=1), 99)))]


def _draw(tables) -> Figure:
    figure = Figure(figsize=(11, 7), layout="constrained")
    titles = (f"after {STEPS} steps", "after a round of refinement")
    for axes, table, title in zip(figure.subplots(1, 2), tables, titles, strict=True):
        image = axes.imshow(table, cmap="magma_r", vmin=0, vmax=1, aspect="auto")
        axes.set(title=title, xlabel="feature", ylabel="component")
    figure.colorbar(image, label="share of the feature's vector")
    return figure


if __name__ == "__main__":
    main()
