"""A config, checked and taken apart: what a run will do.

Letters: S seeds side by side.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from apd_jax import studies
from apd_jax.decompose import check_target
from apd_jax.run.config import check_run, make_settings, make_training
from apd_jax.runtime import metric_writer
from apd_jax.settings import Settings
from apd_jax.studies.pretraining import Task, Training


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked config, taken apart.

    Attributes:
      config: the frozen config.
      study: the module of the paper's experiment.
      task: the target network, its inputs and labels.
      training: how the target is trained.
      settings: how it is decomposed.
    """

    config: ml_collections.FrozenConfigDict
    study: Any
    task: Task
    training: Training
    settings: Settings

    @property
    def seeds(self) -> jax.Array:
        """Seeds of the runs side by side, uint32 [S]."""
        first = np.uint32(self.config.seed)
        return first + jnp.arange(self.config.seeds, dtype=jnp.uint32)


def make_plan(config: ml_collections.ConfigDict) -> Plan:
    """Check every field of a config, and the network it describes.

    Raises:
      UserError: the first field that is out of its range, and how to mend it; or Weights & Biases
        is asked for and not installed.
    """
    frozen = ml_collections.FrozenConfigDict(config)
    check_run(frozen)
    if frozen.wandb.project:
        metric_writer.import_wandb(frozen.wandb.project)
    study = studies.find(frozen.name)
    study.published(frozen.variant)
    task = study.make_task(frozen)
    plan = Plan(frozen, study, task, make_training(frozen), make_settings(frozen, task))
    untrained = jax.jit(lambda key: task.target(task.init(key)))
    check_target(untrained(jax.random.key(frozen.seed)), task.inputs, plan.settings)
    return plan
