"""One run as a story: target, decomposition, evaluation, figures, report.

Letters: S seeds side by side.
"""

import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from apd_jax import config_fields, randomness
from apd_jax.decomposition.result import Decomposition
from apd_jax.evaluation.shuffled import shuffled
from apd_jax.jax_settings import own_settings
from apd_jax.run.config import Config
from apd_jax.run.plan import Plan, make_plan
from apd_jax.run.publish import publish
from apd_jax.runtime import loop, memory, preemption, session
from apd_jax.runtime.preemption import StopFlag
from apd_jax.runtime.progress import Progress
from apd_jax.runtime.session import Stage
from apd_jax.runtime.workdir import Workdir
from apd_jax.sites import Target
from apd_jax.studies import pretraining
from apd_jax.training import restarts
from apd_jax.training.trainer import init_states, make_between, make_step, moves_of


@own_settings()
def run(
    config: ml_collections.ConfigDict,
    workdir_path: str | os.PathLike[str],
    *,
    command: str = "",
    flag: StopFlag | None = None,
) -> dict[str, Any]:
    """Run an experiment, or go on with it, or rebuild what a finished one shows.

    Args:
      config: the experiment (see configs/).
      workdir_path: directory of the run.
      command: the command line, for the report.
      flag: asked to stop between chunks.

    Returns:
      The content of results.json.

    Raises:
      UserError: a field out of its range, a directory that belongs to another config or cannot
        be written to, Weights & Biases asked for and not installed; before any training.
      loop.Stopped: `flag` was raised; the work so far is saved.
      loop.Diverged: a loss stopped being finite; the last good checkpoint stays.
      CheckpointError: a checkpoint can't be written, or there are some but none is whole.
      OSError: another file can't be written.
    """
    plan = make_plan(config)
    flag = flag or StopFlag()
    seconds = {}
    with Workdir(workdir_path) as workdir:
        workdir.claim(
            plan.config.flags(),
            free=config_fields.free_names(plan.config),
            defaults=Config(target=plan.study.task).flags(),
        )
        targets, seconds["target"] = train_targets(plan, workdir, flag)
        if plan.task.shuffled:
            targets = shuffle(targets, plan.seeds)
        decompositions, seconds["decompose"] = decompose_targets(plan, targets, workdir, flag)
        save_components(plan, decompositions, workdir)
        start = time.monotonic()
        with preemption.watch(flag, loop.Stopped(plan.settings.steps, "evaluation")):
            rows, arrays = evaluate(plan, targets, decompositions)
        seconds["evaluate"] = time.monotonic() - start
        with preemption.watch(flag, loop.Stopped(plan.settings.steps, "report")):
            return publish(
                workdir, plan, decompositions, rows, arrays, seconds=seconds, command=command
            )


def train_targets(plan: Plan, workdir: Workdir, flag: StopFlag) -> tuple[Target, float]:
    """The targets of all seeds, leaves [S, ...], trained or from the workdir; and seconds."""
    training = plan.training
    if training is None:
        params = pretraining.init_params(plan.task, plan.seeds)
        return jax.vmap(plan.task.target)(params), 0.0
    stage = Stage(
        name="target",
        directory=workdir.target,
        make_state=lambda: pretraining.init_state(plan.task, training, plan.seeds),
        make_step=lambda: pretraining.make_step(plan.task, training),
        context=jnp.zeros(plan.seeds.shape),
        seeds=plan.seeds,
        steps=training.steps,
        **_saving_and_logging(plan.config),
    )
    state, seconds = session.run(stage, flag)
    return jax.vmap(plan.task.target)(state.params), seconds


def shuffle(targets: Target, seeds: jax.Array) -> Target:
    """The control: targets whose decomposed matrices have their entries shuffled."""

    def one(target, seed):
        key = randomness.stream(seed, "shuffled matrices")
        return target.with_weights(shuffled(target.weights, key))

    return jax.vmap(one)(targets, seeds)


def decompose_targets(
    plan: Plan, targets: Target, workdir: Workdir, flag: StopFlag
) -> tuple[list[Decomposition], float]:
    """Decompose the targets of all seeds, from where the workdir is; and seconds."""
    settings, inputs = plan.settings, plan.task.inputs
    spread, seeds = restarts.spread(targets, plan.seeds, plan.config.restarts)
    stage = Stage(
        name="decomposition",
        directory=workdir.path,
        make_state=lambda: init_states(settings, spread, seeds, inputs),
        make_step=lambda: make_step(settings, inputs),
        make_between=lambda: make_between(settings, inputs),
        context=spread,
        seeds=seeds,
        steps=settings.steps,
        wandb=_wandb(plan.config),
        **_saving_and_logging(plan.config),
    )
    state, seconds = session.run(stage, flag)
    best, losses = restarts.best(settings, spread, state, plan.seeds, inputs)
    state = loop.pick(state, best)
    return [
        Decomposition(
            loop.pick(targets, i),
            loop.pick(state.components, i),
            settings,
            losses=losses[i].tolist(),
            moves=moves_of(loop.pick(state, i)),
        )
        for i in range(len(plan.seeds))
    ], seconds


def save_components(plan: Plan, decompositions: list[Decomposition], workdir: Workdir) -> None:
    """Write the components of every seed."""
    directory = workdir.path / "components"
    for seed, decomposition in zip(plan.seeds.tolist(), decompositions, strict=True):
        decomposition.save(directory / f"seed_{seed}")


def evaluate(
    plan: Plan, targets: Target, decompositions: list[Decomposition]
) -> tuple[list[dict], list[Any]]:
    """Numbers of results.json and arrays for the figures, an entry a seed."""
    losses = None
    if plan.task.training is not None:
        losses = pretraining.final_loss(plan.task, targets.params, plan.seeds).tolist()
    rows, arrays = [], []
    with Progress(len(decompositions), "evaluation", unit="seed") as progress:
        for index, decomposition in enumerate(decompositions):
            preemption.stop_if_asked()
            memory.give_back()  # what training or the seed before this one took
            key = randomness.stream(plan.seeds[index], "evaluation")
            numbers, measured = plan.study.evaluate(
                plan.task, decomposition, key=key, samples=plan.config.evaluation_samples
            )
            row = {"seed": int(plan.seeds[index]), **numbers}
            row |= {f"refine_{name}": count for name, count in decomposition.moves.items()}
            rows.append(row if losses is None else row | {"target_loss": losses[index]})
            arrays.append(measured)
            progress.update(index + 1)
    return rows, arrays


def _saving_and_logging(config: Config) -> dict[str, Any]:
    """Fields of `Stage` that all loops of a run share."""
    return {
        "chunk_steps": config.chunk_steps,
        "save_every": config.checkpoint_every,
        "max_to_keep": config.max_to_keep,
        "config": config.flags(),
        "tensorboard": config.tensorboard,
    }


def _wandb(config: Config) -> dict[str, Any]:
    """Arguments of `wandb.init`."""
    return {
        **config_fields.to_mapping(config.wandb),
        "config": config.flags(),
    }
