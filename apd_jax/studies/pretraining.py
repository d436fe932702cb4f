"""Training of the target networks, several seeds side by side.

Letters: B batch, S seeds.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from apd_jax import randomness
from apd_jax.programs import partition
from apd_jax.runtime import loop, mesh
from apd_jax.studies.task import TargetTraining, Task
from apd_jax.training import optimizers


class PretrainState(NamedTuple):
    """State of a target's training: int32 step, trained and fixed parameters, optimiser state."""

    step: jax.Array
    trained: dict[str, Any]
    fixed: dict[str, Any]
    optimizer: Any

    @property
    def params(self) -> dict[str, Any]:
        """All parameters together."""
        return {**self.trained, **self.fixed}


def init_params(task: Task, seeds: jax.Array) -> Any:
    """Draw the parameters of all seeds, every leaf [S, ...]."""
    return jax.vmap(lambda seed: task.init(_init_key(seed)))(seeds)


def _init_key(seed: jax.Array) -> jax.Array:
    return randomness.stream(seed, "target parameters")


class TargetTrainer:
    """A training of the target networks of S seeds, that `session.fit` runs.

    Attributes:
      steps: number of optimiser steps.
      seeds: uint32 [S].
      context: [S] zeros; steps read no context.
      step: the step function `(context, state, key) -> (state, metrics)` for a single seed.
      between, feed: None, see `loop.Training`.
      layout: how the arrays are divided over devices; None for a single device.
    """

    between: loop.Between | None = None
    feed: loop.Feed | None = None

    def __init__(
        self,
        task: Task,
        training: TargetTraining,
        seeds: jax.Array,
        mesh_shape: Sequence[int] | None = None,
    ):
        self._task, self.steps, self.seeds = task, training.steps, seeds
        self.context = jnp.zeros(seeds.shape)
        self.layout = mesh.layout_of_targets(len(seeds), mesh_shape)
        rate = training.rate()
        self._optimizer = optimizers.adam(rate, weight_decay=training.weight_decay)
        self.step = _make_step(task, training.batch_size, self._optimizer, rate)

    def init_state(self) -> PretrainState:
        """Make the states before the first step, every leaf [S, ...]."""
        task = self._task

        def one(seed):
            params = task.init(_init_key(seed))
            trained = {name: value for name, value in params.items() if task.is_trained(name)}
            fixed = {name: value for name, value in params.items() if not task.is_trained(name)}
            optimizer_state = self._optimizer.init(trained)
            return PretrainState(jnp.zeros((), jnp.int32), trained, fixed, optimizer_state)

        return jax.vmap(one)(self.seeds)


def _make_step(
    task: Task,
    batch_size: int,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
) -> loop.StepFn:
    @jax.default_matmul_precision("highest")
    def step(_, state: PretrainState, key):
        x = task.inputs(randomness.stream_of_step(key, "target batch"), batch_size)
        x = partition.over_data(x)

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
    task: Task,
    params: Any,
    seeds: jax.Array,
    batch_size: int | None = None,
    batches: int | None = None,
) -> jax.Array:
    """Compute the loss of trained targets on new data, [S]; by default of the task's size."""
    batches, batch_size = batches or task.loss_batches[0], batch_size or task.loss_batches[1]

    def one(seed_params, seed):
        keys = jax.random.split(randomness.stream(seed, "target loss"), batches)

        def loss(key):
            return task.loss(seed_params, task.loss_inputs(key, batch_size))

        return jnp.mean(jax.lax.map(loss, keys))

    return jax.vmap(one)(params, seeds)
