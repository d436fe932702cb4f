"""The measured problems: the paper's four configs, built as in a run."""

import dataclasses
import importlib.util
from typing import Any

import jax

from apd_jax.run.setup import Setup, make_setup
from apd_jax.runtime import loop
from apd_jax.sites import Target
from apd_jax.studies import pretraining
from benchmarks.process import ROOT


@dataclasses.dataclass(frozen=True)
class Published:
    """Settings of a config in the paper, and of its measurement.

    Attributes:
      seeds: Number of runs side by side.
      chunk: Number of steps in one execution.
    """

    seeds: int
    chunk: int


CONFIGS = {
    "tms:5-2": Published(seeds=12, chunk=100),
    "tms:40-10": Published(seeds=3, chunk=50),
    "resid_mlp:1": Published(seeds=1, chunk=20),
    "resid_mlp:2": Published(seeds=1, chunk=20),
}


def find_setup(name: str, overrides: dict[str, Any]) -> Setup:
    """The checked config of `configs/<file>.py:<variant>`.

    Args:
      name: Name `<file>:<variant>`, one of `CONFIGS`.
      overrides: Fields to change, `{"num_components": 500, "target.d_resid": 2000}`.

    Raises:
      ValueError: The config is unknown, or a field is out of range.
      KeyError: The config has no such field.
    """
    if name not in CONFIGS:
        raise ValueError(f"config must be one of {sorted(CONFIGS)}, got {name!r}")
    stem, variant = name.split(":")
    spec = importlib.util.spec_from_file_location(stem, ROOT / "configs" / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(variant)
    config.update_from_flattened_dict({"seeds": CONFIGS[name].seeds, **overrides})
    return make_setup(config)


def train_targets(setup: Setup, steps: int) -> Target:
    """Return targets of all seeds, leaves [S, ...], trained for `steps` steps (0: untrained)."""
    training = dataclasses.replace(setup.task.training, steps=max(steps, 1))
    trainer = pretraining.TargetTrainer(setup.task, training, setup.seeds)
    state = trainer.init_state()
    if steps:
        state = loop.run_steps(trainer, state, chunk_steps=steps)
    return jax.vmap(setup.task.target)(state.params)
