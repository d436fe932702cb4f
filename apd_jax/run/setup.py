"""The setup of a run: its config, checked, and the study that it belongs to.

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
class Setup:
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


def make_setup(config: ml_collections.ConfigDict) -> Setup:
    """Check every field of a config, and the network it describes.

    Raises:
      UserError: a field is out of its range; or Weights & Biases is requested and not installed.
    """
    setup = read_setup(config)
    check(setup)
    return setup


def read_setup(config: ml_collections.ConfigDict) -> Setup:
    """Check every field of a config.

    Raises:
      UserError: a field is out of its range.
    """
    study = studies.find(config.name)
    return Setup(read_config(config, study), study)


def check(setup: Setup) -> None:
    """Check the network of a setup, its memory, and the login to Weights & Biases if needed.

    Raises:
      UserError: see `make_setup`.
    """
    if setup.config.wandb.project:
        metric_writer.check_login(setup.config.wandb.project, setup.config.wandb.mode)
    layout_of(setup.settings, setup.config.seeds * setup.config.restarts, setup.config.mesh)
    _check_memory(setup)
    key = randomness.root(setup.config.seed)
    untrained = jax.jit(lambda key: setup.task.target(setup.task.init(key)))
    check_target(untrained(key), setup.task.inputs(key, 3), setup.settings.objective)


def abstract_targets(setup: Setup) -> Target:
    """Shapes of the targets of all trainings side by side, n restarts of S seeds, [n·S, ...]."""
    seeds = jax.ShapeDtypeStruct((setup.config.restarts * setup.config.seeds,), jnp.uint32)
    return jax.eval_shape(
        jax.vmap(lambda seed: setup.task.target(setup.task.init(randomness.root(seed)))), seeds
    )


def requirements_of(setup: Setup, *, compile: bool = True) -> Requirements:
    """Count what the decomposition of a setup needs on each device; see `requirements`."""
    return requirements(
        setup.settings,
        abstract_targets(setup),
        as_source(setup.task.inputs),
        mesh_shape=setup.config.mesh,
        compile=compile,
    )


def _check_memory(setup: Setup) -> None:
    """Raise UserError if a lower bound of the memory that the run needs exceeds the memory.

    Parameters, factors and a batch are checked first, since a network of impossible size can't
    even be traced.
    """
    key, training, settings = jax.random.key(0), setup.training, setup.settings
    params = jax.tree.leaves(jax.eval_shape(setup.task.init, key))
    x = jax.eval_shape(lambda key: setup.task.inputs(key, 1), key)
    width = sum(leaf.size for leaf in jax.tree.leaves(x))
    floats = [
        3 * sum(leaf.size for leaf in params),
        3 * settings.num_components * (settings.rank or 1) * sum(sum(p.shape) for p in params),
        settings.batch_size * (settings.num_components + width),
        training.batch_size * width if training else 0,
    ]
    _refuse_beyond_memory(setup, 4 * setup.config.seeds * sum(floats))
    targets = abstract_targets(setup)
    needed = least_bytes(settings, targets, as_source(setup.task.inputs))
    if training:
        rows = setup.config.seeds * training.batch_size
        needed = max(needed, 3 * held(targets) + rows * held(x))
    _refuse_beyond_memory(setup, needed)


def _refuse_beyond_memory(setup: Setup, needed: int) -> None:
    there = memory.total()
    if there is not None and needed > there:
        large = [
            f"{name}={value}"
            for name, _, value in config_fields.leaves(setup.config)
            if max((v for v in jax.tree.leaves(value) if isinstance(v, int)), default=0) >= 1000
        ]
        raise UserError(
            f"at least {needed / 1e9:.3g} GB of memory are needed and {there / 1e9:.3g} GB are "
            f"available: lower some of {', '.join(large)}"
        )
