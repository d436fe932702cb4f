"""Small trainings whose masks and losses have to be the same on every mesh and in every process.

Run as a script, it makes the trainings of a list of meshes on the devices that there are, and
writes what they measured, for `mesh_test.py`.
"""

import argparse
import json
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import config_fields, randomness
from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.objective import selection
from apd_jax.programs import partition
from apd_jax.programs.jax_settings import own_settings
from apd_jax.runtime import loop, processes, session, step_programs
from apd_jax.runtime.mesh import layout, split_cpu
from apd_jax.runtime.outcome import Stopped
from apd_jax.runtime.stores import Keeping
from apd_jax.studies import pretraining
from apd_jax.studies.language_model.network import LanguageModel
from apd_jax.studies.tms.network import TMSTask
from apd_jax.training.config import Settings
from apd_jax.training.trainer import Trainer

STEPS, SEEDS = 20, 8


class Case(NamedTuple):
    """A task, and the settings that differ from the defaults."""

    task: object
    options: dict


SMALL = LanguageModel(layers=1, width=8, heads=2, mlp_width=16, context=4, text_bytes=5000)
# The paper's 5 and 50 components can't be divided by 8: 8 and 48 take their place.
CASES = {
    "5-2": Case(
        TMSTask(SparseFeatures(5, 0.3)),
        {"num_components": 8, "rank": 3, "topk": 0.4, "attribution_source": "components"},
    ),
    "40-10": Case(
        TMSTask(SparseFeatures(40, 0.05), num_hidden=10), {"num_components": 48, "topk": 1.0}
    ),
    "transformer": Case(
        SMALL,
        {
            "num_components": 16,
            "topk": 2.0,
            "per_position": True,
            "minimality_loss": "kl",
            "attribution_mode": "sketch",
            "metric": "fisher",
            "eigenbasis": True,
        },
    ),
}
ROUNDS = {
    "refine": {"every": 8, "ramp": 2, "batch_size": 64},
    "relative_losses": True,
    "accumulate": 2,
    "moments": "bfloat16",
}
COMMON = {"rank": 2, "batch_size": 16, "steps": STEPS, "learning_rate": 1e-2, "unit_norm": True}


class Record(loop.Observer):
    """Keeps every step's total loss [S] and mask [S, ...]."""

    def __init__(self):
        self.losses, self.masks = [], []

    def on_metrics(self, step, metrics):
        self.losses.append(metrics["loss/total"])
        self.masks.append(metrics["mask"])


def trainer(name, shape, seeds=SEEDS, **more):
    """The training of a case on a mesh; all devices are left to one where the shape is None."""
    case = CASES[name]
    settings = config_fields.from_mapping(Settings(), {**COMMON, **case.options, **more})
    seeds = jnp.arange(seeds, dtype=jnp.uint32)
    targets = jax.vmap(case.task.target)(pretraining.init_params(case.task, seeds))
    return Trainer(settings, targets, case.task.inputs, seeds, mesh_shape=shape)


def with_masks(training):
    """The training's step, with the mask that it selects among its metrics."""
    settings, source, train = training.settings, training._source, training.step

    def step(context, state, key):
        x = source.batch(None, state.step, randomness.stream_of_step(key, "batch"), 16)
        x = partition.over_data(x)
        probes = randomness.stream_of_step(key, "attribution")
        scores = settings.objective.attribute(context, state.components, x, probes).scores
        mask = settings.objective.select(scores, x).mask
        state, metrics = train(context, state, key)
        return state, metrics | {"mask": mask}

    return step


@own_settings()
def run(name, shape, **more):
    """Losses [steps, S] and masks [steps, S, ...] of a case on a mesh."""
    training, record = trainer(name, shape, **more), Record()
    training.step = with_masks(training)
    loop.run_steps(training, training.init_state(), chunk_steps=1, observer=record)
    return np.stack(record.losses), np.stack(record.masks)


class StopAt(loop.Observer):
    """Requests a stop after some steps."""

    def __init__(self, steps):
        self._steps, self._stop = steps, False

    def on_metrics(self, step, metrics):
        self._stop = step >= self._steps

    def should_stop(self):
        return self._stop


@own_settings()
def resume(directory, shape, until=STEPS):
    """Components after `until` steps of a training with seed 0 that is kept in a directory."""
    training = trainer("40-10", shape, seeds=1)
    keeping = Keeping(chunk_steps=5, save_every=5)
    try:
        outcome = session.fit(
            training, directory, name="case", keeping=keeping, observer=StopAt(until)
        )
    except Stopped as stopped:
        outcome = stopped.outcome
    return {
        f"{site}/{side}": np.asarray(leaf)
        for site, factors in outcome.state.components.items()
        for side, leaf in factors._asdict().items()
    }


@own_settings()
def state_bytes(shape):
    """Bytes of a device that a compiled step takes, of each of `KINDS`."""
    training = trainer("40-10", shape, seeds=1)
    state = jax.eval_shape(training.init_state)
    leaves, tree = jax.tree.flatten(training.context)
    if training.layout is not None:
        place = training.layout.state(state)
        state = jax.tree.map(
            lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), state, place
        )
    program = step_programs.chunk(training.step, tree)
    compiled = program.lower(1, training.layout, leaves, state, training.seeds, None).compile()
    return np.array(
        [getattr(compiled.memory_analysis(), f"{kind}_size_in_bytes") for kind in KINDS]
    )


KINDS = ("argument", "output", "alias", "temp")


def topk_differences():
    """How many entries of exact masks differ between one device and a (1, 4, 2) mesh, with ties."""
    scores = jnp.round(jax.random.uniform(jax.random.key(0), (24, 10)), 1).at[3, 4].set(jnp.nan)
    rows = jnp.arange(24) % 3 > 0
    rules = {
        "whole": lambda scores: selection.batch_topk(scores, 1.3),
        "part": lambda scores: selection.batch_topk(scores, 1.3, None, jnp.float32(0.6)),
        "rows": lambda scores: selection.batch_topk(scores, 1.3, rows),
    }
    divided = layout(1, (1, 4, 2), batch_size=24, num_components=10).over_seeds

    def masks(scores):
        found = {}
        for name, rule in rules.items():
            chosen = rule(scores)
            found[name] = chosen.mask
            if chosen.pairs is not None:
                ones = jnp.zeros(scores.shape, bool).at[chosen.pairs].set(True, mode="drop")
                found[f"{name} pairs"] = ones
        return found

    expected = jax.jit(masks)(scores)
    found = jax.jit(divided(jax.vmap(masks)))(scores[None])
    return {
        f"topk {name}": np.sum(np.asarray(found[name][0]) != np.asarray(expected[name]))
        for name in expected
    }


def main(argv):
    """Make the trainings that the arguments ask for, and write one file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("meshes", type=json.loads, help="shapes, null for the default")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument(
        "--resume", nargs="*", default=[], help="directories to begin or resume on the first mesh"
    )
    parser.add_argument("--resume_on", type=json.loads, help="another mesh for these")
    parser.add_argument("--until", type=int, default=STEPS)
    parser.add_argument("--rounds", action="store_true", help="of refinement, with 5-2")
    parser.add_argument("--topk", action="store_true")
    parser.add_argument("--memory", type=json.loads, default=[], help="shapes to measure bytes on")
    parser.add_argument("--coordinator")
    parser.add_argument("--num_processes", type=int)
    parser.add_argument("--process_id", type=int)
    given = parser.parse_args(argv)
    processes.start(given.coordinator, given.num_processes, given.process_id, detect=False)
    split_cpu(1)
    found = topk_differences() if given.topk else {}
    found |= {f"bytes {shape}": state_bytes(shape) for shape in given.memory}
    for place, directory in enumerate(given.resume):
        end = resume(directory, given.resume_on or given.meshes[0], given.until)
        found |= {f"resumed {place} {name}": leaf for name, leaf in end.items()}
    for shape in given.meshes[:2] if given.rounds else ():
        found[f"rounds {shape} losses"] = run("5-2", shape, seeds=2, **ROUNDS)[0]
    for name in filter(None, given.cases.split(",")):
        for shape in given.meshes:
            losses, masks = run(name, shape)
            found |= {f"{name} {shape} losses": losses, f"{name} {shape} masks": masks}
    if jax.process_index() == 0:
        np.savez(given.out, **found)
    processes.end(0)


if __name__ == "__main__":
    main(sys.argv[1:])
