"""Configs: the fields that all experiments share, and what they turn into.

An experiment's own file in configs/ starts from `base_config` and sets its numbers.
"""

import ml_collections
from ml_collections import config_dict

from apd_jax.errors import UserError
from apd_jax.objective import Coefficients, Objective
from apd_jax.settings import Settings
from apd_jax.studies.pretraining import Task, Training

# Fields that may differ between the commands of one run: they don't change its numbers.
FREE_FIELDS = ("checkpoint_every", "max_to_keep", "tensorboard", "wandb")


def base_config() -> ml_collections.ConfigDict:
    """All fields of a config, with defaults where experiments agree."""
    config = ml_collections.ConfigDict()
    config.name = ""
    config.variant = ""
    config.seed = 0
    config.seeds = 1  # how many runs side by side, with seeds seed, seed + 1, ...

    # Decomposition.
    config.steps = 10_000
    config.batch_size = 256
    config.num_components = 1
    config.rank = config_dict.placeholder(int)  # full rank if not set
    config.topk = 1.0
    config.selection = "batch"  # batch | sample | exact
    config.distil = False
    config.coefficients = ml_collections.ConfigDict(
        {
            "faithfulness": 1.0,
            "minimality": 1.0,
            "simplicity": 1.0,
            "activation": 0.0,
            "output": 0.0,
            "lp_minimality": 0.0,
            "lp_simplicity": 0.0,
        }
    )
    config.schatten_p = 0.9
    config.lp_p = 0.9
    config.attribution_source = "target"  # target | components
    config.unit_norm = False
    config.init_scale = 1.0
    config.init_instances = 1
    config.learning_rate = 1e-3
    config.schedule = "cosine"  # constant | linear | cosine | exponential
    config.warmup_fraction = 0.01
    config.halflife = config_dict.placeholder(float)

    # How it is computed: every choice of route gives the same mathematics.
    config.attribution_mode = "auto"  # auto | forward | reverse | literal
    config.masked_route = "auto"  # auto | grouped | dense
    config.projection = "auto"  # auto | literal; of the gradient of unit-norm U
    config.matmul_precision = "highest"  # highest | high | default; on GPU and TPU only

    # The target network and its training.
    config.target = ml_collections.ConfigDict(
        {
            "num_features": 1,
            "probability": 0.05,
            "input_mode": "independent",  # independent | exactly_n
            "num_active": 1,
            "synced": (),
            "steps": 1000,
            "batch_size": 1024,
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "weight_decay": 0.01,
        }
    )

    # Measurement, logging and saving.
    config.evaluation_samples = 20_000
    config.chunk_steps = 100
    config.checkpoint_every = 1000
    config.max_to_keep = 3
    config.tensorboard = True
    config.wandb = ml_collections.ConfigDict(
        {
            "project": config_dict.placeholder(str),
            "entity": config_dict.placeholder(str),
            "name": config_dict.placeholder(str),
            "mode": config_dict.placeholder(str),
        }
    )
    return config


def make_settings(config: ml_collections.FrozenConfigDict, task: Task) -> Settings:
    """The decomposition's hyperparameters.

    Raises:
      UserError: a field out of its range.
    """
    objective = Objective(
        coefficients=Coefficients(**config.coefficients.to_dict()),
        topk=config.topk,
        selection=config.selection,
        distil=config.distil,
        schatten_p=config.schatten_p,
        lp_p=config.lp_p,
        hidden_sites=task.hidden_sites,
        hidden_activation=task.hidden_activation,
        attribution_source=config.attribution_source,
        unit_norm=config.unit_norm,
        attribution_mode=config.attribution_mode,
        masked_route=config.masked_route,
        projection=config.projection,
        matmul_precision=config.matmul_precision,
    )
    return Settings(
        objective=objective,
        num_components=config.num_components,
        rank=config.rank,
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        warmup_fraction=config.warmup_fraction,
        halflife=config.halflife,
        init_scale=config.init_scale,
        init_instances=config.init_instances,
    )


def make_training(config: ml_collections.FrozenConfigDict) -> Training:
    """The target's training.

    Raises:
      UserError: a field out of its range.
    """
    names = ("steps", "batch_size", "learning_rate", "schedule", "weight_decay")
    try:
        return Training(**{name: config.target[name] for name in names})
    except UserError as error:
        raise UserError(f"config.target: {error}") from error


def check_run(config: ml_collections.FrozenConfigDict) -> None:
    """Raise UserError for fields that concern the run as a whole and are out of range."""
    names = ("seeds", "chunk_steps", "checkpoint_every", "max_to_keep", "evaluation_samples")
    for name in names:
        if config[name] < 1:
            raise UserError(f"{name} must be at least 1, got {config[name]}")
    if not 0 <= config.seed <= 2**32 - config.seeds:
        raise UserError(f"seed must be in [0, 2**32 - seeds], got {config.seed}")
    synced = config.target.synced
    if not all(isinstance(group, tuple | list) for group in synced):
        raise UserError(
            f"target.synced must be groups of features, such as ((0, 1), (2, 3)); got {synced}"
        )
