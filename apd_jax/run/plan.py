"""The plan of a run: its config, checked, and the study that it belongs to.

Letters: S seeds side by side.
"""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from apd_jax import config_fields, randomness, studies
from apd_jax.decomposition.checks import check_target
from apd_jax.errors import UserError
from apd_jax.run.config import Config, read_config
from apd_jax.runtime import memory, metric_writer
from apd_jax.studies.study import Study
from apd_jax.studies.task import Task, Training
from apd_jax.training.config import Settings
from apd_jax.training.trainer import layout_of


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked config, and its study.

    Attributes:
      config: all hyperparameters.
      study: how its results are measured, shown and judged.
    """

    config: Config
    study: Study

    @property
    def task(self) -> Task:
        """The target network, its inputs, labels and training."""
        return self.config.target

    @property
    def training(self) -> Training | None:
        """How the target is trained; None where it is used as drawn."""
        training = self.task.training
        return training if training is not None and training.steps else None

    @property
    def settings(self) -> Settings:
        """The hyperparameters of the decomposition."""
        return self.config.settings

    @property
    def seeds(self) -> jax.Array:
        """The seeds of the runs side by side, uint32 [S]."""
        first = np.uint32(self.config.seed)
        return first + jnp.arange(self.config.seeds, dtype=jnp.uint32)


def make_plan(config: ml_collections.ConfigDict) -> Plan:
    """Check every field of a config, and the network it describes.

    Raises:
      UserError: a field is out of its range; or Weights & Biases is requested and not installed.
    """
    plan = read_plan(config)
    check(plan)
    return plan


def read_plan(config: ml_collections.ConfigDict) -> Plan:
    """Check every field of a config.

    Raises:
      UserError: a field is out of its range.
    """
    study = studies.find(config.name)
    return Plan(read_config(config, study), study)


def check(plan: Plan) -> None:
    """Check the network of a plan, its memory, and the login to Weights & Biases if needed.

    Raises:
      UserError: see `make_plan`.
    """
    if plan.config.wandb.project:
        metric_writer.check_login(plan.config.wandb.project, plan.config.wandb.mode)
    layout_of(plan.settings, plan.config.seeds * plan.config.restarts, plan.config.mesh)
    _check_memory(plan)
    key = randomness.root(plan.config.seed)
    untrained = jax.jit(lambda key: plan.task.target(plan.task.init(key)))
    check_target(untrained(key), plan.task.inputs(key, 3), plan.settings.objective)


def _check_memory(plan: Plan) -> None:
    """Raise UserError where the states and a batch of inputs alone exceed the memory."""
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    params = jax.eval_shape(lambda seed: plan.task.init(randomness.root(seed)), seed)
    example = jax.eval_shape(lambda seed: plan.task.inputs(randomness.root(seed), 1), seed)
    width = sum(leaf.size for leaf in jax.tree.leaves(example))
    settings, training = plan.settings, plan.training
    widths = sum(sum(leaf.shape) for leaf in jax.tree.leaves(params))
    ranks = settings.rank or 1
    floats = [
        3 * sum(leaf.size for leaf in jax.tree.leaves(params)),
        3 * settings.num_components * ranks * widths,
        settings.batch_size * (settings.num_components + width),
        training.batch_size * width if training else 0,
    ]
    needed, there = 4 * plan.config.seeds * sum(floats), memory.total()
    if there is not None and needed > there:
        large = [
            f"{name}={value}"
            for name, _, value in config_fields.leaves(plan.config)
            if max((v for v in jax.tree.leaves(value) if isinstance(v, int)), default=0) >= 1000
        ]
        raise UserError(
            f"at least {needed / 1e9:.3g} GB of memory are needed and {there / 1e9:.3g} GB are "
            f"available: lower some of {', '.join(large)}"
        )
