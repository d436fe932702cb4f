"""The interface of a task: a network, its inputs, and how its parameters are obtained.

Letters: B batch.
"""

import dataclasses
from typing import Any

import jax
import optax

from apd_jax.config_fields import check_at_least, check_values, setting
from apd_jax.data import SampleBatch
from apd_jax.errors import UserError
from apd_jax.sites import Target
from apd_jax.training import optimizers


@dataclasses.dataclass(frozen=True)
class TargetTraining:
    """Hyperparameters of the target's training, by AdamW on fresh batches."""

    steps: int = setting(1000, "Steps of the target's training; 0 keeps the initial parameters.")
    batch_size: int = setting(1024, "B, number of fresh inputs per step.")
    learning_rate: float = setting(1e-3, "Peak learning rate.")
    schedule: str = setting("cosine", "Schedule of the learning rate.")
    weight_decay: float = setting(0.01, "Decoupled weight decay.")

    def __post_init__(self):
        check_values(self)
        check_at_least(self, 0, "steps")
        check_at_least(self, 1, "batch_size")
        if not self.weight_decay >= 0:
            raise UserError(f"weight_decay must not be negative, got {self.weight_decay}")
        self.rate()

    def rate(self) -> optax.Schedule:
        """The learning-rate schedule."""
        return optimizers.learning_rate_schedule(
            self.learning_rate, steps=max(self.steps, 1), schedule=self.schedule
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A kind of network with its hyperparameters, which are fields of `config_fields.setting`.

    The fields are the flags `--config.target.*`. The constructor checks them and raises UserError.
    A task must be hashable, since JAX compiles it in as a constant.

    A task defines at least `inputs`, `init` and `target`. One whose parameters, a dict, are trained
    before they are decomposed also defines `training`, `is_trained` and `loss`.
    """

    shuffled: bool = setting(
        False,
        "A control: the entries of every decomposed matrix are shuffled before the decomposition, "
        "so that there is nothing to find.",
    )

    @property
    def inputs(self) -> SampleBatch:
        """Input distribution: `(key, batch_size) -> x [B, ...]`, traced by JAX."""
        raise NotImplementedError

    @property
    def training(self) -> TargetTraining | None:
        """Training of the target; None if `init` returns the final parameters."""
        return None

    @property
    def hidden_sites(self) -> tuple[str, ...]:
        """Sites whose outputs the hidden-activation loss compares; by default none."""
        return ()

    @property
    def hidden_activation(self) -> str:
        """Nonlinearity that this loss applies first, see `losses.activation_function`."""
        return "identity"

    @property
    def loss_inputs(self) -> SampleBatch:
        """Input distribution that the loss of the trained target is measured on."""
        return self.inputs

    @property
    def loss_batches(self) -> tuple[int, int]:
        """Number and size of the batches that it is measured on."""
        return 25, 4096

    def init(self, key: jax.Array) -> Any:
        """The parameters before training: random, hand-coded, or loaded; traced by JAX."""
        raise NotImplementedError

    def target(self, params: Any) -> Target:
        """The network with its sites."""
        raise NotImplementedError

    def is_trained(self, name: str) -> bool:
        """Whether the parameters below a top-level name are trained instead of fixed."""
        raise NotImplementedError

    def loss(self, params: Any, x: jax.Array) -> jax.Array:
        """The loss on a batch x [B, ...], a scalar."""
        raise NotImplementedError
