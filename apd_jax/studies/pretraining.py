"""Training of the target networks, several seeds side by side.

Letters: B batch, S seeds.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from apd_jax import loop, optimizers
from apd_jax.errors import UserError
from apd_jax.inputs import SparseFeatures
from apd_jax.sites import Target


class Task(Protocol):
    """A kind of target network: how it is drawn, what it is trained on, what is decomposed."""

    inputs: SparseFeatures

    @property
    def sites(self) -> tuple[str, ...]: ...

    @property
    def hidden_sites(self) -> tuple[str, ...]: ...

    @property
    def hidden_activation(self) -> str: ...

    def init(self, key: jax.Array) -> Any: ...

    def is_trained(self, name: str) -> bool: ...

    def labels(self, x: jax.Array) -> jax.Array: ...

    def loss(self, params: Any, x: jax.Array) -> jax.Array: ...

    def target(self, params: Any) -> Target: ...


@dataclasses.dataclass(frozen=True)
class Training:
    """How a target is trained: AdamW on fresh batches.

    Attributes:
      steps: number of steps, at least 1.
      batch_size: B, at least 1.
      learning_rate: peak learning rate.
      schedule: shape of its decay (`optimizers.learning_rate_schedule`).
      weight_decay: decoupled weight decay.
    """

    steps: int
    batch_size: int
    learning_rate: float
    schedule: optimizers.Schedule
    weight_decay: float = 0.01

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")
        if not self.weight_decay >= 0:
            raise UserError(f"weight_decay must not be negative, got {self.weight_decay}")
        self.rate()

    def rate(self) -> optax.Schedule:
        """The learning-rate schedule."""
        return optimizers.learning_rate_schedule(
            self.learning_rate, steps=self.steps, schedule=self.schedule
        )


class PretrainState(NamedTuple):
    """State of target training: int32 step, trained and fixed parameters, optimiser state."""

    step: jax.Array
    trained: dict[str, Any]
    fixed: dict[str, Any]
    optimizer: Any

    @property
    def params(self) -> dict[str, Any]:
        """All parameters together."""
        return {**self.trained, **self.fixed}


def _optimizer(training: Training) -> optax.GradientTransformation:
    return optimizers.adam(training.rate(), weight_decay=training.weight_decay)


def init_state(task: Task, training: Training, seeds: jax.Array) -> PretrainState:
    """States before the first step, every leaf [S, ...]."""

    def one(seed):
        params = task.init(jax.random.fold_in(jax.random.key(seed), 2**31))
        trained = {name: value for name, value in params.items() if task.is_trained(name)}
        fixed = {name: value for name, value in params.items() if not task.is_trained(name)}
        optimizer_state = _optimizer(training).init(trained)
        return PretrainState(jnp.zeros((), jnp.int32), trained, fixed, optimizer_state)

    return jax.vmap(one)(seeds)


def make_step(task: Task, training: Training) -> loop.StepFn:
    """The step function for `loop.run_steps`; it reads no context."""
    optimizer = _optimizer(training)
    rate = training.rate()

    @jax.default_matmul_precision("highest")
    def step(_, state: PretrainState, key):
        x = task.inputs(jax.random.fold_in(key, 0), training.batch_size)

        def loss_fn(trained):
            return task.loss({**trained, **state.fixed}, x)

        loss, gradient = jax.value_and_grad(loss_fn)(state.trained)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        metrics = {"loss": loss, "learning_rate": rate(state.step)}
        return PretrainState(state.step + 1, trained, state.fixed, optimizer_state), metrics

    return step


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
@jax.default_matmul_precision("highest")
def final_loss(
    task: Task, params: Any, seeds: jax.Array, batch_size: int = 4096, batches: int = 25
) -> jax.Array:
    """Loss of trained targets on fresh data, [S]."""

    def one(seed_params, seed):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2**31 + 1), batches)
        losses = jax.lax.map(lambda key: task.loss(seed_params, task.inputs(key, batch_size)), keys)
        return jnp.mean(losses)

    return jax.vmap(one)(params, seeds)
