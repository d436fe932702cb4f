"""One run as a story: target, decomposition, evaluation, figures, report.

Letters: S seeds side by side.
"""

import dataclasses
import functools
import json
import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

from apd_jax import browser, decompose, loop, report, studies, train_step
from apd_jax.attributions import gradient_attributions
from apd_jax.config import FREE_FIELDS, check_run, make_settings, make_training
from apd_jax.decompose import Decomposition, Settings
from apd_jax.evaluation.probes import probe
from apd_jax.figures import style
from apd_jax.runtime.checkpoint import Checkpointer
from apd_jax.runtime.metric_writer import MetricWriter
from apd_jax.runtime.preemption import StopFlag
from apd_jax.runtime.progress import Progress
from apd_jax.runtime.workdir import Workdir, atomic_write_bytes, atomic_write_text
from apd_jax.sites import Target
from apd_jax.studies.verdicts import compare, judge, summarise
from apd_jax.targets import pretrain
from apd_jax.targets.pretrain import Task, Training


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked config, taken apart.

    Attributes:
      config: the frozen config.
      study: the module of the paper's experiment.
      task: the target network, its inputs and labels.
      training: how the target is trained.
      settings: how it is decomposed.
    """

    config: ml_collections.FrozenConfigDict
    study: Any
    task: Task
    training: Training
    settings: Settings

    @property
    def seeds(self) -> jax.Array:
        """Seeds of the runs side by side, uint32 [S]."""
        first = np.uint32(self.config.seed)
        return first + jnp.arange(self.config.seeds, dtype=jnp.uint32)


def make_plan(config: ml_collections.ConfigDict) -> Plan:
    """Check every field of a config.

    Raises:
      ValueError: the first field that is out of its range, and how to mend it.
    """
    frozen = ml_collections.FrozenConfigDict(config)
    check_run(frozen)
    study = studies.find(frozen.name)
    study.published(frozen.variant)
    task = study.make_task(frozen)
    return Plan(frozen, study, task, make_training(frozen), make_settings(frozen, task))


class _Session(loop.Observer):
    """Watches one loop of a run: metrics, progress and checkpoints in their files."""

    def __init__(self, checkpointer, writer, progress, flag: StopFlag, seconds: float):
        self._checkpointer, self._writer, self._progress = checkpointer, writer, progress
        self._flag = flag
        self._before, self._start = seconds, time.monotonic()
        self._last: tuple[int, float] | None = None

    @property
    def seconds(self) -> float:
        """Seconds spent in this loop, those before a resume included."""
        return self._before + time.monotonic() - self._start

    def on_metrics(self, step, metrics):
        now = time.monotonic()
        row = {name: value.tolist() for name, value in metrics.items()}
        row["learning_rate"] = float(metrics["learning_rate"][0])
        if self._last is not None:
            row["steps_per_second"] = (step - self._last[0]) / max(now - self._last[1], 1e-9)
        self._last = step, now
        self._writer.write(step, row)
        shown = {name.removeprefix("loss/"): v for name, v in metrics.items() if "loss" in name}
        self._progress.update(step, **shown)

    def save(self, step, state):
        self._checkpointer.save(step, state, {"seconds": self.seconds})

    def should_stop(self):
        return self._flag.requested


def _train(
    name: str,
    make_state: Callable[[], Any],
    step_fn: Callable[[], loop.StepFn],
    context: Any,
    plan: Plan,
    steps: int,
    directories: tuple[os.PathLike[str], os.PathLike[str]],
    flag: StopFlag,
) -> tuple[Any, float]:
    """Run a loop from its newest whole checkpoint to its end; returns state and seconds."""
    checkpoints, metrics = directories
    config = plan.config
    with Checkpointer(checkpoints, max_to_keep=config.max_to_keep) as checkpointer:
        restored = checkpointer.restore_latest(jax.eval_shape(make_state))
        done = restored.step if restored else 0
        if done >= steps:
            logging.info("%s: all %d steps are done", name, steps)
            return restored.state, restored.metadata["seconds"]
        if done:
            logging.info("%s: going on from step %d of %d", name, done, steps)
        seconds = restored.metadata["seconds"] if restored else 0.0
        logs = {} if name == "target" else _loggers(config)
        with (
            MetricWriter(metrics, resume_step=done if restored else None, **logs) as writer,
            Progress(steps, name, initial=done) as progress,
        ):
            session = _Session(checkpointer, writer, progress, flag, seconds)
            state = loop.run_steps(
                step_fn(),
                context,
                restored.state if restored else make_state(),
                plan.seeds,
                steps=steps,
                chunk_steps=config.chunk_steps,
                save_every=config.checkpoint_every,
                observer=session,
            )
            return state, session.seconds


def _loggers(config) -> dict[str, Any]:
    settings = config.wandb.to_dict()
    return {
        "tensorboard": config.tensorboard,
        "wandb": {**settings, "config": config.to_dict()} if settings["project"] else None,
    }


def train_targets(plan: Plan, workdir: Workdir, flag: StopFlag) -> tuple[Target, float]:
    """The targets of all seeds, leaves [S, ...], trained or from the workdir; and seconds."""
    state, seconds = _train(
        "target",
        lambda: pretrain.init_state(plan.task, plan.training, plan.seeds),
        lambda: pretrain.make_step(plan.task, plan.training),
        jnp.zeros(plan.seeds.shape),
        plan,
        plan.training.steps,
        (workdir.target / "checkpoints", workdir.target),
        flag,
    )
    return jax.vmap(plan.task.target)(state.params), seconds


def decompose_targets(
    plan: Plan, targets: Target, workdir: Workdir, flag: StopFlag
) -> tuple[list[Decomposition], float]:
    """Decompose the targets of all seeds, from where the workdir is; and seconds."""
    for target in (loop.pick(targets, i) for i in range(len(plan.seeds))):
        decompose.check_target(target, plan.task.inputs, plan.settings)
    state, seconds = _train(
        "decomposition",
        lambda: decompose.init_states(plan.settings, targets, plan.seeds),
        lambda: decompose.make_step(plan.settings, plan.task.inputs),
        targets,
        plan,
        plan.settings.steps,
        (workdir.checkpoints, workdir.path),
        flag,
    )
    components = train_step.current_components(plan.settings.objective, state)
    return [
        Decomposition(loop.pick(targets, i), loop.pick(components, i), plan.settings)
        for i in range(len(plan.seeds))
    ], seconds


def evaluate(plan: Plan, decompositions: list[Decomposition]) -> tuple[list[dict], list[Any]]:
    """Numbers of results.json and arrays for the figures, an entry a seed."""
    source = plan.settings.objective.attribution_source
    attributions = functools.partial(gradient_attributions, source=source)
    rows, arrays = [], []
    with Progress(len(decompositions), "evaluation", unit="seed") as progress:
        for index, decomposition in enumerate(decompositions):
            key = jax.random.fold_in(jax.random.key(plan.seeds[index]), 2**31 + 3)
            numbers, measured = plan.study.evaluate(
                plan.task, decomposition, attributions, key, plan.config.evaluation_samples
            )
            rows.append({"seed": int(plan.seeds[index]), **numbers})
            arrays.append(measured)
            progress.update(index + 1)
    return rows, arrays


def _shown_seed(rows: list[dict]) -> int:
    """The place of the seed whose details are shown: the first that is solved, or the first."""
    return next((i for i, row in enumerate(rows) if row["solved"]), 0)


def draw(plan: Plan, rows: list[dict], arrays: list[Any]) -> list[report.Panel]:
    """The main figure of every seed, and all figures of one seed."""
    shown = _shown_seed(rows)
    panels = []
    for index, (row, measured) in enumerate(zip(rows, arrays, strict=True)):
        if index != shown and len(rows) > 1:
            figures = plan.study.draw(row, measured, only=plan.study.MAIN_FIGURE)
        else:
            figures = plan.study.draw(row, measured)
        for name, figure in figures.items():
            caption = plan.study.CAPTIONS[name]
            several = len(rows) > 1
            panels.append(
                report.Panel(
                    name=f"{name}_seed_{row['seed']}" if several else name,
                    title=caption.title + (f", seed {row['seed']}" if several else ""),
                    caption=caption.text,
                    png=style.to_png(figure),
                )
            )
    return panels


def browse(plan: Plan, decomposition: Decomposition, arrays: Any, seed: int) -> dict[str, Any]:
    """Data of the component browser for one seed."""
    target = decomposition.target
    probes = probe(
        decomposition,
        plan.task.inputs,
        key=jax.random.fold_in(jax.random.key(np.uint32(seed)), 2**31 + 4),
        num_features=plan.task.inputs.num_features,
    )
    return browser.browser_data(
        factors={
            site: (np.asarray(f.U), np.asarray(f.V)) for site, f in decomposition.components.items()
        },
        target_weights={site: np.asarray(weight) for site, weight in target.weights.items()},
        attributions=probes.attributions,
        topk_mask=probes.mask,
        target_outputs=probes.target_outputs,
        topk_outputs=probes.topk_outputs,
        active_share=probes.active_share,
        represented=plan.study.represented(arrays),
        views=plan.study.views(target),
        seed=seed if len(plan.seeds) > 1 else None,
    )


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("apd_jax", "jax", "jaxlib", "flax", "optax", "numpy")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed (run from a checkout)"
    return found


def machine() -> dict[str, Any]:
    """What the run was computed on."""
    return {
        "platform": platform.platform(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cpu_cores": os.cpu_count(),
    }


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
      ValueError: a field out of its range, a directory that belongs to another config or cannot
        be written to; before any training.
      loop.Stopped: `flag` was raised; the work so far is saved.
      loop.Diverged: a loss stopped being finite; the last checkpoint stays.
    """
    plan = make_plan(config)
    flag = flag or StopFlag()
    with Workdir(workdir_path) as workdir:
        workdir.claim(plan.config.to_dict(), free=FREE_FIELDS)
        seconds = {}
        targets, seconds["target"] = train_targets(plan, workdir, flag)
        decompositions, seconds["decompose"] = decompose_targets(plan, targets, workdir, flag)
        for seed, decomposition in zip(plan.seeds.tolist(), decompositions, strict=True):
            decomposition.save(workdir.path / "components" / f"seed_{seed}")
        start = time.monotonic()
        rows, arrays = evaluate(plan, decompositions)
        target_losses = pretrain.final_loss(plan.task, targets.params, plan.seeds).tolist()
        rows = [{**row, "target_loss": loss} for row, loss in zip(rows, target_losses, strict=True)]
        seconds["evaluate"] = time.monotonic() - start
        results = _results(plan, rows, seconds)
        atomic_write_text(workdir.results, json.dumps(results, indent=2) + "\n")
        panels = draw(plan, rows, arrays)
        _write_figures(workdir, panels)
        shown = _shown_seed(rows)
        page = report.render_report(
            results=results,
            metrics=_read_metrics(workdir.metrics),
            target_metrics=_read_metrics(workdir.target / "metrics.jsonl"),
            panels=panels,
            browser=browse(plan, decompositions[shown], arrays[shown], rows[shown]["seed"]),
            command=command,
        )
        atomic_write_text(workdir.report, page)
    return results


def _results(plan: Plan, rows: list[dict], seconds: dict[str, float]) -> dict[str, Any]:
    summary = summarise([{k: v for k, v in row.items() if k != "seed"} for row in rows])
    variant = plan.config.variant
    return {
        "name": plan.config.name,
        "variant": variant,
        "config": plan.config.to_dict(),
        "versions": versions(),
        "machine": machine(),
        "seconds": seconds,
        "seeds": rows,
        "summary": summary,
        "verdicts": judge(plan.study.thresholds(variant), summary),
        "comparison": compare(plan.study.published(variant), summary, len(rows)),
    }


def _write_figures(workdir: Workdir, panels: list[report.Panel]) -> None:
    workdir.figures.mkdir(exist_ok=True)
    for panel in panels:
        atomic_write_bytes(workdir.figures / f"{panel.name}.png", panel.png)
    names = {panel.name for panel in panels}
    for path in workdir.figures.glob("*.png"):
        if path.stem not in names:
            path.unlink()


def _read_metrics(path: os.PathLike[str]) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
