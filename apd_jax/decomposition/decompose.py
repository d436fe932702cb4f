"""Decompose a network: settings, checks, and the job that trains.

Letters: B batch, C components.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Literal

from apd_jax.components import Components
from apd_jax.config_fields import check_keywords, from_mapping
from apd_jax.config_fields.values import KINDS, number
from apd_jax.data import Beside, Data, Source, as_source
from apd_jax.decomposition import auto_topk, directory
from apd_jax.decomposition.checks import (
    check_concrete,
    check_positions,
    check_start,
    check_target,
    output_shape,
)
from apd_jax.decomposition.given_inputs import on_one_device
from apd_jax.decomposition.job import Job, RunOptions
from apd_jax.decomposition.logits import gives_logits_of_tokens
from apd_jax.decomposition.other_checks import check_other, check_other_outputs
from apd_jax.decomposition.result import Decomposition
from apd_jax.errors import UserError, about
from apd_jax.programs.jax_settings import own_settings
from apd_jax.runtime import loop
from apd_jax.runtime.outcome import Stopped
from apd_jax.runtime.preemption import stop_flag
from apd_jax.sites import PyTree, Target, check_is_target
from apd_jax.training import presets
from apd_jax.training.config import Settings
from apd_jax.training.trainer import layout_of

_LOOKED_AT = 1024  # examples, of which at least one has to count


@own_settings()
def decompose(
    target: Target,
    data: Data,
    *,
    num_components: int,
    topk: float | Literal["auto"] | None,
    seed: int = 0,
    restarts: int = 1,
    init: Components | Decomposition | None = None,
    other: Data | None = None,
    workdir: str | os.PathLike[str] | None = None,
    chunk_steps: int = 100,
    checkpoint_every: int = 1000,
    mesh: Sequence[int] | None = None,
    observer: loop.Observer | None = None,
    **options: Any,
) -> Decomposition:
    """Decompose the sites of a network into parameter components.

    Shows a progress bar on a terminal and in a notebook; elsewhere absl logs the progress at level
    INFO. Ctrl-C (or SIGTERM) ends the training after the running chunk of steps and
    returns the partial decomposition. With a `workdir` the same call resumes it, after a stop or a
    crash; the directory gets checkpoints/, metrics.jsonl and, at the end, components/ and
    report.html.

    Args:
      target: the network and its sites.
      data: a sampling function `(key, batch_size) -> x [B, ...]`, traced by JAX; an array or a
        dict, tuple or other pytree of arrays [N, ...], used in shuffled epochs: of NumPy (rows of
        a memory-mapped file are read as needed), JAX or torch, or Hugging Face data sets or their
        columns; or an iterable of batches, one for each step: a list, a generator, a torch
        `DataLoader`, a batched data set of grain. A smaller last batch is left out.
      num_components: C.
      topk: active components per example on average (batch top-k); `"auto"` finds it by short
        trainings (`auto_topk`; after a stop during the search, the last short training is
        returned); None for the Lp objective.
      seed: root of all randomness, in [0, 2**32).
      restarts: number of initialisations side by side; the one with the least loss is returned.
      init: components to start from, or a decomposition whose components these are.
      other: general data, for a targeted decomposition: components explain `data` only, and the
        remainder `Δ = θ* − Σ_c P_c` is one more component, always active on `other`. The loss
        gets the term `d(f(x, Σ_c s_c(x) P_c + Δ), f(x, θ*))` over `other`, d the distance of
        `minimality_loss`; for other settings see `presets.targeted`.
      workdir: directory of this decomposition: a new one, or the one to resume. To recognise
        arrays, all their rows are read before the first step, those of memory-mapped files too.
      chunk_steps: number of steps that run on the device between two progress reports.
      checkpoint_every: number of steps between two checkpoints in the workdir, or between two
        copies of the state that are kept in memory in case the training diverges.
      mesh: numbers of devices along restarts, data and components; see docs/scaling.md.
      observer: receives metrics and states (`Observer`).
      **options: any further field of `Settings` and its parts, such as `steps`, `batch_size`,
        `learning_rate`, `coefficients`, `rank`, `schatten_p`, `hidden_sites`, `unit_norm`,
        `metric`, `minimality_loss`, `valid`. Unspecified options default to `presets.ROBUST`,
        where losses and the learning rate are relative to those of the network, or for language
        models to `presets.LOGITS`: with `minimality_loss="kl", per_position=True`, or with neither
        where the network reads tokens [B, T] and gives a logit for every token of its vocabulary,
        [B, T, V]. The paper's settings are in configs/.

    Returns:
      The `Decomposition`.

    Raises:
      UserError: a setting out of its range, an unknown site, unusable data or an unusable network,
        or a workdir of another decomposition: of other settings, another network, another sampling
        function, metric or minimality_loss. Raised before any training, except where `topk="auto"`
        finds no k in its short trainings.
      Diverged: a loss is no longer finite. Its `decomposition` has the last finite state that was
        kept (None if it diverged before that).
      CheckpointError, OSError: the workdir can't be written to, as on a full disk. Its
        `decomposition` has what was trained before; after the last step it is the finished one.
      DataFailed: the data raised an error during the training. Its `decomposition` has what was
        trained before; with a workdir that is saved.
      Exception, SystemExit: an error of the observer, or its `sys.exit()`, ends the training. Its
        `decomposition` has what was trained before; with a workdir that is saved.
      Terminated: SIGTERM stopped an earlier call in this process. It is a SystemExit of status 75.
    """
    check_keywords(decompose, Settings(), options)
    run = RunOptions(seed, restarts, chunk_steps, checkpoint_every)
    start: Components | None = init.components if isinstance(init, Decomposition) else init
    auto = _is_auto(topk)
    _check_topk(topk)
    k = 1.0 if auto else topk  # a placeholder until k is found
    check_is_target(target)
    check_concrete(target, data, start)
    _check_observer(observer)
    target, start = on_one_device((target, start))
    source = as_source(data, run.seed)
    if other is not None:
        with about("other"):
            beside = as_source(other, run.seed)
        source = Beside(source, beside)
    given = {"num_components": num_components, "topk": k} | source.sizes() | options
    example = source.examples(run.seed, 3)
    base = presets.base(given | {"topk": topk}, logits=gives_logits_of_tokens(target, example))
    settings = from_mapping(presets.targeted(base) if other is not None else base, given)
    check_other(target, source, settings, run.seed, restarts)
    _check(target, source, example, settings, start)
    check_other_outputs(target, source, settings, run.seed)
    _check_counted(source, settings, run.seed)
    if "attribution_mode" not in options:
        settings = presets.with_exact_scores(settings, output_shape(target, example))
    layout_of(settings, run.restarts, mesh)
    if auto:
        auto_topk.check(settings)
        source.again()
    what = None if workdir is None else source.describe()  # reads all rows of arrays
    described = dataclasses.asdict(run) | {"data": what}
    described |= {"topk": topk} if auto else {}
    config = directory.config_of(settings, target, start, **described)

    with stop_flag() as flag, directory.hold(workdir, config) as place:
        job = Job(target, source, example, run, start, observer or loop.Observer(), flag, mesh)
        try:
            return job.decompose(settings, place, config, search_k=auto)
        except Stopped as stopped:
            return stopped.decomposition


def _is_auto(topk: Any) -> bool:
    return isinstance(topk, str) and topk == auto_topk.AUTO


def _check_topk(topk: Any) -> None:
    """Raise UserError for what is neither a number nor a word for one."""
    if not (topk is None or _is_auto(topk) or KINDS[float](number(topk))):
        raise UserError(
            f"topk must be a finite number, {auto_topk.AUTO!r} or None, got {topk!r:.200}"
        )


def _check_observer(observer: Any) -> None:
    """Raise UserError for what can't be told metrics and states, which is noticed late."""
    wanted = ("on_metrics", "save", "should_stop")
    if observer is None or isinstance(observer, loop.Observer):
        return
    if isinstance(observer, type) or not all(callable(getattr(observer, n, None)) for n in wanted):
        raise UserError(
            f"observer must be an Observer, an object with {', '.join(wanted)}, got "
            f"{observer!r:.200}"
        )


def _check(
    target: Target, source: Source, example: PyTree, settings: Settings, start: Components | None
) -> None:
    """Raise UserError unless network, data, settings and start fit each other."""
    try:
        check_target(target, example, settings.objective)
    except UserError as error:
        if not source.hint:
            raise
        raise UserError(f"{error}; {source.hint}") from error
    check_positions(target, example, settings)
    check_start(target, start, settings)
    source.check(settings.batch_size)


def _check_counted(source: Source, settings: Settings, seed: int) -> None:
    """Raise UserError if `valid` excludes all of the examples that are looked at."""
    if settings.objective.valid is None:
        return
    x = source.examples(seed, max(_LOOKED_AT, settings.batch_size))
    counted = settings.objective.counted(x)
    if counted is not None and not counted.any():
        raise UserError(
            f"valid excludes every row of the {len(counted)} examples that were looked at: it must "
            "give True for examples or positions that count, and False for padding"
        )
