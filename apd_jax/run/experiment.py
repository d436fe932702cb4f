"""A run from start to end: target, decomposition, evaluation, figures, report.

Letters: S seeds side by side.
"""

import dataclasses
import os
import time
from typing import Any

import jax
import ml_collections

from apd_jax import config_fields, randomness
from apd_jax.decomposition.result import Decomposition
from apd_jax.evaluation.shuffled import shuffled
from apd_jax.programs.jax_settings import own_settings
from apd_jax.run.config import Config
from apd_jax.run.publish import publish
from apd_jax.run.setup import Setup, make_setup
from apd_jax.runtime import loop, memory, preemption, session
from apd_jax.runtime.outcome import Stopped
from apd_jax.runtime.preemption import StopFlag
from apd_jax.runtime.progress import Progress
from apd_jax.runtime.stores import Keeping
from apd_jax.runtime.workdir import Workdir
from apd_jax.sites import Target
from apd_jax.studies import pretraining
from apd_jax.training.trainer import Trainer


@own_settings()
def run(
    config: ml_collections.ConfigDict,
    workdir_path: str | os.PathLike[str],
    *,
    command: str = "",
    flag: StopFlag | None = None,
) -> dict[str, Any]:
    """Run an experiment, or resume it, or rebuild the report of a finished one.

    Args:
      config: the experiment (see configs/).
      workdir_path: directory of the run.
      command: the command line, for the report.
      flag: requests a stop between chunks.

    Returns:
      The content of results.json.

    Raises:
      UserError: a field out of its range, a directory that belongs to another config or cannot
        be written to, Weights & Biases asked for and not installed; before any training.
      Stopped: a stop was requested; the work so far is saved.
      Diverged: a loss is no longer finite; the last good checkpoint stays.
      CheckpointError: a checkpoint can't be written, or there are some but none is whole.
      OSError: another file can't be written.
    """
    setup = make_setup(config)
    flag = flag or StopFlag()
    seconds = {}
    with Workdir(workdir_path) as workdir:
        claim(setup, workdir)
        targets, seconds["target"] = train_targets(setup, workdir, flag)
        if setup.task.shuffled:
            targets = shuffle(targets, setup.seeds)
        decompositions, seconds["decompose"] = decompose_targets(setup, targets, workdir, flag)
        for seed, decomposition in zip(setup.seeds.tolist(), decompositions, strict=True):
            decomposition.save(workdir.path / "components" / f"seed_{seed}")
        start = time.monotonic()
        with preemption.watch(flag.asked, Stopped(setup.settings.steps, "evaluation")):
            rows, arrays = evaluate(setup, targets, decompositions)
        seconds["evaluate"] = time.monotonic() - start
        with preemption.watch(flag.asked, Stopped(setup.settings.steps, "report")):
            return publish(
                workdir, setup, decompositions, rows, arrays, seconds=seconds, command=command
            )


def claim(setup: Setup, workdir: Workdir) -> None:
    """Claim a directory for a run, or check that it belongs to this run."""
    workdir.claim(
        setup.config.flags(),
        free=config_fields.free_names(setup.config),
        defaults=Config(target=setup.study.task).flags(),
    )


def train_targets(setup: Setup, workdir: Workdir, flag: StopFlag) -> tuple[Target, float]:
    """The targets of all seeds, leaves [S, ...], trained or read from the workdir; and seconds."""
    training = setup.training
    if training is None:
        params = pretraining.init_params(setup.task, setup.seeds)
        return jax.vmap(setup.task.target)(params), 0.0
    trainer = pretraining.TargetTrainer(setup.task, training, setup.seeds, setup.config.mesh)
    outcome = session.fit(
        trainer, workdir.target, name="target", keeping=keeping(setup.config), flag=flag
    )
    return jax.vmap(setup.task.target)(outcome.state.params), outcome.seconds


def shuffle(targets: Target, seeds: jax.Array) -> Target:
    """The control: targets whose decomposed matrices have their entries shuffled."""

    def one(target, seed):
        key = randomness.stream(seed, "shuffled matrices")
        return target.with_weights(shuffled(target.weights, key))

    return jax.vmap(one)(targets, seeds)


def make_trainer(setup: Setup, targets: Target) -> Trainer:
    """Make the trainer of a setup for the targets of all seeds."""
    return Trainer(
        setup.settings,
        targets,
        setup.task.inputs,
        setup.seeds,
        restarts=setup.config.restarts,
        mesh_shape=setup.config.mesh,
    )


def decompose_targets(
    setup: Setup, targets: Target, workdir: Workdir, flag: StopFlag
) -> tuple[list[Decomposition], float]:
    """Decompose the targets of all seeds, or resume that in the workdir; and seconds."""
    trainer = make_trainer(setup, targets)
    wandb = config_fields.to_mapping(setup.config.wandb) | {"config": setup.config.flags()}
    outcome = session.fit(
        trainer,
        workdir.path,
        name="decomposition",
        keeping=dataclasses.replace(keeping(setup.config), wandb=wandb),
        flag=flag,
    )
    results = trainer.results(outcome.state)
    return [
        Decomposition(
            loop.pick(targets, i),
            result.components,
            setup.settings,
            losses=result.losses,
            moves=result.moves,
            others=result.others,
        )
        for i, result in enumerate(results)
    ], outcome.seconds


def evaluate(
    setup: Setup, targets: Target, decompositions: list[Decomposition]
) -> tuple[list[dict], list[Any]]:
    """Numbers for results.json and arrays for the figures, one entry per seed."""
    losses = None
    if setup.task.training is not None:
        losses = pretraining.final_loss(setup.task, targets.params, setup.seeds).tolist()
    rows, arrays = [], []
    with Progress(len(decompositions), "evaluation", unit="seed") as progress:
        for index, decomposition in enumerate(decompositions):
            preemption.stop_if_asked()
            memory.give_back()  # what training or the seed before this one took
            key = randomness.stream(setup.seeds[index], "evaluation")
            numbers, measured = setup.study.evaluate(
                setup.task, decomposition, key=key, samples=setup.config.evaluation_samples
            )
            row = {"seed": int(setup.seeds[index]), **numbers}
            row |= {f"refine_{name}": count for name, count in decomposition.moves.items()}
            rows.append(row if losses is None else row | {"target_loss": losses[index]})
            arrays.append(measured)
            progress.update(index + 1)
    return rows, arrays


def keeping(config: Config) -> Keeping:
    """How the trainings of a run are saved and logged."""
    return Keeping(
        config.chunk_steps,
        config.checkpoint_every,
        config.max_to_keep,
        config.flags(),
        config.tensorboard,
    )
