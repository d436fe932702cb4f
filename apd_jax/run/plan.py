"""The plan of a run: its config, checked, and the study that it belongs to.

Letters: S seeds side by side.
"""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from apd_jax import config_fields, randomness, studies
from apd_jax.data import as_source
from apd_jax.decomposition.checks import check_target
from apd_jax.errors import UserError
from apd_jax.run.config import Config, read_config
from apd_jax.runtime import memory, metric_writer
from apd_jax.sites import Target
from apd_jax.studies.study import Study
from apd_jax.studies.task import TargetTraining, Task
from apd_jax.training.config import Settings
from apd_jax.training.requirements import Requirements, held, least_bytes, requirements
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
    def training(self) -> TargetTraining | None:
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


def abstract_targets(plan: Plan) -> Target:
    """Shapes of the targets of all trainings side by side, n restarts of S seeds, [n·S, ...]."""
    seeds = jax.ShapeDtypeStruct((plan.config.restarts * plan.config.seeds,), jnp.uint32)
    return jax.eval_shape(
        jax.vmap(lambda seed: plan.task.target(plan.task.init(randomness.root(seed)))), seeds
    )


def plan_requirements(plan: Plan, *, compile: bool = True) -> Requirements:
    """Count what the decomposition of a plan needs on each device; see `requirements`."""
    return requirements(
        plan.settings,
        abstract_targets(plan),
        as_source(plan.task.inputs),
        mesh_shape=plan.config.mesh,
        compile=compile,
    )


def _check_memory(plan: Plan) -> None:
    """Raise UserError if a lower bound of the memory that the run needs exceeds the memory.

    Parameters, factors and a batch are checked first, since a network of impossible size can't
    even be traced.
    """
    key, training, settings = jax.random.key(0), plan.training, plan.settings
    params = jax.tree.leaves(jax.eval_shape(plan.task.init, key))
    x = jax.eval_shape(lambda key: plan.task.inputs(key, 1), key)
    width = sum(leaf.size for leaf in jax.tree.leaves(x))
    floats = [
        3 * sum(leaf.size for leaf in params),
        3 * settings.num_components * (settings.rank or 1) * sum(sum(p.shape) for p in params),
        settings.batch_size * (settings.num_components + width),
        training.batch_size * width if training else 0,
    ]
    _refuse_beyond_memory(plan, 4 * plan.config.seeds * sum(floats))
    targets = abstract_targets(plan)
    needed = least_bytes(settings, targets, as_source(plan.task.inputs))
    if training:
        rows = plan.config.seeds * training.batch_size
        needed = max(needed, 3 * held(targets) + rows * held(x))
    _refuse_beyond_memory(plan, needed)


def _refuse_beyond_memory(plan: Plan, needed: int) -> None:
    there = memory.total()
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
