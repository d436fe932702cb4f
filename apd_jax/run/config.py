"""Configs: everything that a command line may set, as flags and as records.

A file in configs/ starts from `base_config` and sets the values of its experiment.
"""

import dataclasses
from typing import Any, Literal, get_args, get_origin

import ml_collections
from ml_collections import config_dict

from apd_jax import config_fields, studies
from apd_jax.config_fields import check_at_least, check_values, setting
from apd_jax.errors import UserError
from apd_jax.evaluation.evidence.adversary import rising
from apd_jax.evaluation.evidence.verdicts import Limits
from apd_jax.studies.study import Study
from apd_jax.training.config import Settings


@dataclasses.dataclass(frozen=True)
class WandB:
    """Arguments of `wandb.init`; nothing is logged there without a project."""

    project: str | None = setting(
        None, "Project in Weights & Biases; nothing is logged there if not set."
    )
    entity: str | None = setting(None, "Owner of the project.")
    name: str | None = setting(None, "Name of the run there.")
    mode: str | None = setting(None, "online, offline or disabled.")


@dataclasses.dataclass(frozen=True)
class Config:
    """All hyperparameters of a run; those marked `free` do not change its results."""

    name: str = setting("", "Study, one of apd_jax/studies/.")
    variant: str = setting("", "Variant of the study.")
    seed: int = setting(0, "First seed.")
    seeds: int = setting(1, "Runs side by side, with seeds seed, seed + 1, ...")
    restarts: int = setting(1, "Restarts of each seed; the one with the least loss is chosen.")
    settings: Settings = setting(Settings(), "The decomposition.", flat=True)
    target: Any = setting(None, "The network: the study's `Task`.")
    evaluation_samples: int = setting(20_000, "Number of sampled inputs for the measurements.")
    evidence_samples: int = setting(
        2048,
        "Number of sampled inputs for the evidence, sequences for language models; 0 skips the "
        "evidence.",
    )
    evidence_steps: tuple[int, ...] = setting(
        (20,), "Numbers of steps of the evidence's adversary, such as 20,80,320."
    )
    evidence_limits: Limits = setting(Limits(), "Largest values that pass in the evidence.")
    mesh: tuple[int, ...] | None = setting(
        None,
        "Numbers of devices along seeds, data and components, such as 1,4,2; by default as many "
        "seeds as divide evenly, then data.",
        free=True,
    )
    chunk_steps: int = setting(100, "Number of steps between two rows of metrics.jsonl.")
    checkpoint_every: int = setting(1000, "Number of steps between two checkpoints.", free=True)
    max_to_keep: int = setting(3, "Number of newest checkpoints that are kept.", free=True)
    tensorboard: bool = setting(True, "Write TensorBoard files.", free=True)
    wandb: WandB = setting(WandB(), "Weights & Biases.", free=True)

    def __post_init__(self):
        check_values(self, skip=("seed",))
        check_at_least(self, 1, "seeds", "restarts", "evaluation_samples")
        check_at_least(self, 0, "evidence_samples")
        rising("evidence_steps", self.evidence_steps)
        check_at_least(self, 1, "chunk_steps", "checkpoint_every", "max_to_keep")
        if not 0 <= self.seed <= 2**32 - self.seeds:
            raise UserError(f"seed must be in [0, 2**32 - seeds], got {self.seed}")

    def flags(self) -> dict[str, Any]:
        """The values that the command line may set, as a nested mapping."""
        return config_fields.to_mapping(self, flags_only=True)


def base_config(name: str, variant: str) -> ml_collections.ConfigDict:
    """Make the config of a study, with the default of every flag.

    Raises:
      UserError: no such study or variant.
    """
    study = studies.find(name)
    if variant not in study.variants:
        raise UserError(f"unknown variant {variant!r}; configs/{name}.py has {study.variants}")
    record = Config(name=name, variant=variant, target=study.task)
    config = ml_collections.ConfigDict()
    _fill(config, record)
    return config


def _fill(config: ml_collections.ConfigDict, record: Any) -> None:
    for field in config_fields.flags(record):
        value = getattr(record, field.name)
        if not config_fields.is_record(value):
            config[field.name] = config_dict.FieldReference(value, field_type=kind(field, value))
        elif config_fields.marked(field, "flat"):
            _fill(config, value)
        else:
            config[field.name] = ml_collections.ConfigDict()
            _fill(config[field.name], value)


def kind(field: dataclasses.Field, value: Any) -> type:
    """The type of a flag's values; `int` for `int | None`, `str` for a choice of strings."""
    options = [option for option in get_args(field.type) if option is not type(None)]
    kind: Any = options[0] if config_fields.optional(field) else field.type
    if kind is Any:
        return type(value)
    if get_origin(kind) is Literal:
        return type(get_args(kind)[0])
    return get_origin(kind) or kind


def read_config(config: ml_collections.ConfigDict, study: Study) -> Config:
    """Check every field of a config, and make its record.

    Raises:
      UserError: a field out of its range.
    """
    given = config.to_dict()
    record = Config(target=study.task)
    if given["variant"] not in study.variants:
        raise UserError(
            f"config.variant must be one of {sorted(study.variants)}, got {given['variant']!r}"
        )
    task = config_fields.from_mapping(record, {"target": given["target"]}).target
    objective = dataclasses.replace(
        record.settings.objective,
        hidden_sites=task.hidden_sites,
        hidden_activation=task.hidden_activation,
    )
    settings = dataclasses.replace(record.settings, objective=objective)
    return config_fields.from_mapping(dataclasses.replace(record, settings=settings), given)
