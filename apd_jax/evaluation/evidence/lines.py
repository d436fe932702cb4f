"""Every line of the evidence, measured block by block.

Letters: N examples, B examples of a block, T positions, C components.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from apd_jax import randomness, validity
from apd_jax.components import num_components
from apd_jax.config_fields import check_whole
from apd_jax.errors import UserError
from apd_jax.evaluation import ranks, seen
from apd_jax.evaluation.evidence import adversary as worst
from apd_jax.evaluation.evidence import cost, distance, equal_rank, rows
from apd_jax.evaluation.evidence.adversary import Adversary
from apd_jax.evaluation.evidence.parts import Parts
from apd_jax.evaluation.evidence.result import Evidence, SiteLine
from apd_jax.evaluation.evidence.rows import Examples
from apd_jax.evaluation.evidence.run import Run, halves
from apd_jax.evaluation.evidence.size import Size
from apd_jax.evaluation.evidence.verdicts import Limits
from apd_jax.jax_settings import own_settings
from apd_jax.runtime.progress import Progress
from apd_jax.sites import PyTree

POOLED = (8, 64)
_MOST_ENTRIES = 4_000_000  # of the masks of terms that are in use at a time


@own_settings()
def evidence(
    decomposition: Any,
    x: PyTree,
    labels: Any = None,
    *,
    valid: Any = None,
    adversary_steps: Sequence[int] = (20, 80),
    adversary_step_size: float = 0.1,
    adversary_starts: int = 1,
    draws: int = 4,
    baselines: Sequence[str] = tuple(equal_rank.NAMES),
    limits: Limits | None = None,
    seed: int = 0,
) -> Evidence:
    """Measure every line of the evidence; see `Decomposition.evidence`."""
    check_whole(draws=draws)
    unknown = sorted(set(baselines) - set(equal_rank.NAMES))
    if unknown:
        raise UserError(f"no baseline {unknown[0]!r}; there are {sorted(equal_rank.NAMES)}")
    target, objective = decomposition.target.at(x), decomposition.objective
    valid = _counted(objective, target, x) if valid is None else valid
    valid = objective.valid if valid is None else valid
    found, values = rows.examples(target, x, labels, valid, objective.per_position)
    run = Run(
        objective=objective,
        target=target,
        parts=Parts(decomposition.components),
        kind=distance.kind_of(objective.minimality_loss),
        examples=found,
        block_size=decomposition.settings.batch_size,
        adversary=Adversary(tuple(adversary_steps), adversary_step_size, adversary_starts),
        draws=draws,
        key=randomness.stream(seed, "evidence"),
    )
    notes = ["Labels are values: no cross entropy is taken of them."] if values else []
    stated = _cost(run, len(baselines))
    logging.info("%s", stated)
    with Progress(stated.passes, "evidence", "forward run") as progress:
        run.progress = progress
        return _measure(run, tuple(baselines), notes, stated, limits or Limits())


def _counted(objective: Any, target: Any, x: PyTree) -> Any:
    """What counts by the rule of the training: [N] where outputs have no positions."""
    valid = objective.counted(x)
    if valid is None:
        return None
    outputs = jax.tree.leaves(jax.eval_shape(target, x))
    per_example = all(leaf.ndim <= valid.ndim for leaf in outputs)
    return np.asarray(validity.of_rows(valid, valid.shape[:1]) if per_example else valid)


def _cost(run: Run, baselines: int) -> cost.Cost:
    blocks = list(_sizes(run))
    block = next(run.blocks())
    shape = jax.eval_shape(
        lambda *a: seen.score(run.objective, *a), run.target, run.parts.terms, block.x
    ).shape
    mask = jax.ShapeDtypeStruct(shape, jnp.float32)
    lowered = distance.of_mask.lower(run.kind, run.target, run.parts, block, mask)
    operations = (lowered.cost_analysis() or {}).get("flops", float("nan"))
    return cost.estimate(
        rows=math.prod(shape[:-1]),
        examples=len(run.examples.counts),
        blocks=len(blocks),
        block_size=max(blocks),
        sites=len(run.target.sites),
        draws=run.draws,
        labels=run.examples.labels is not None,
        adversary=run.adversary,
        baselines=baselines,
        operations=operations,
    )


def _sizes(run: Run) -> Iterator[int]:
    count = len(run.examples.counts)
    return map(len, np.array_split(np.arange(count), max(1, count // run.block_size)))


def _measure(
    run: Run, names: tuple[str, ...], notes: list[str], stated: cost.Cost, limits: Limits
) -> Evidence:
    size = Size(run.target, run.parts.terms)
    for block in run.blocks():
        mask = rows.choose(run.objective, run.target, run.parts.terms, block)
        run.masks.append(rows.packed(mask))
        size.add(run.tally, mask, block)
        run.advance(1)
    notes += _all_masks(run, size.active > 0)
    _shared(run)
    sites = _sites(run, size)
    numbers = size.numbers(run.tally) | _distances(run) | _cross_entropies(run)
    for name in names:
        notes += _baseline(run, name, numbers["active_rank"].value, numbers["l0"].value)
    numbers |= {n: run.tally.number(n) for n in run.tally.names() if n.startswith(names)}
    return Evidence(
        numbers=numbers | _faithfulness(sites),
        sites=sites,
        distance=run.kind,
        num_examples=len(run.examples.counts),
        num_rows=size.rows,
        num_components=len(size.active),
        network_rank=size.network_rank,
        active_share=size.active / max(size.rows, 1),
        adversary=run.adversary,
        draws=run.draws,
        limits=limits,
        notes=tuple(notes),
        cost=stated,
    )


def _all_masks(run: Run, used: np.ndarray) -> list[str]:
    """Lines that are measured block by block; sentences on what is different about them."""
    fewest = POOLED[-1]
    for number, (block, mask) in enumerate(run.masked_blocks()):
        key = jax.random.fold_in(run.key, number)
        _masks(run, block, mask, used, key)
        _adversary(run, "adversarial", run.parts, block, mask, key, run.adversary)
        fewest = min(fewest, int(rows.rows_that_count(block.counts, mask.shape[:-1]).sum()))
    if fewest == POOLED[-1]:
        return []
    return [
        f"Some block has {fewest} rows that count: where these are fewer than a group of pooled "
        "rows, all of them are one group."
    ]


def _masks(run: Run, block: Examples, mask: np.ndarray, used: np.ndarray, key: jax.Array) -> None:
    """Lines of one mask each, and of random ones."""
    parts = run.parts
    run.measure("own", block, mask, parts)
    run.measure("all", block, np.ones(mask.shape), parts)
    run.measure("zero", block, np.zeros(mask.shape), parts)
    plain = block.without_labels()
    run.random("random", block, mask, jax.random.fold_in(key, 0), parts, jax.random.uniform)
    run.random("random_half", block, mask, jax.random.fold_in(key, 1), parts, halves)
    for count in POOLED:
        pooled = rows.pool(mask, plain, count)
        groups = pooled.group if mask.ndim == 2 else None  # else groups lie within examples, mostly
        run.measure(f"pooled_{count}", pooled.block, pooled.mask, parts, groups)
    run.measure("never_needed", plain, np.broadcast_to(used, mask.shape), parts)
    other = rows.permuted(mask, block.counts, jax.random.fold_in(key, 2))
    run.measure("permuted", plain, other, parts)
    if block.labels is not None:
        sums = distance.of_weights(run.kind, run.target, run.target.weights, block)
        run.tally.add("target", sums)
        run.advance(1)


def _adversary(
    run: Run,
    name: str,
    parts: Parts,
    block: Examples,
    mask: np.ndarray,
    key: jax.Array,
    adversary: Adversary,
) -> None:
    """The worst masks of every row."""
    key = jax.random.fold_in(key, 3)
    found = worst.per_row(adversary, run.kind, run.target, parts, block, mask, key, run.steps)
    for steps, sums in found.items():
        run.tally.add(f"{name}_{steps}", sums)


def _shared(run: Run) -> None:
    """The worst mask that all rows share."""
    found = worst.shared(
        run.adversary,
        run.kind,
        run.target,
        run.parts.terms,
        run.masked_blocks,
        jax.random.fold_in(run.key, 2**31),
        run.steps,
    )
    for steps, parts in found.items():
        for sums in parts:
            run.tally.add(f"adversarial_shared_{steps}", sums)


def _sites(run: Run, size: Size) -> tuple[SiteLine, ...]:
    """What every site misses, and the distance with this site alone replaced by its sum."""
    missing = ranks.unfaithfulness(run.target, run.parts.terms)
    weights = run.target.weights
    lines = []
    for site, factors in run.parts.terms.items():
        replaced = weights | {site: factors.sum()}
        name = f"replaced {site}"
        for block in run.blocks():
            sums = distance.of_weights(run.kind, run.target, replaced, block.without_labels())
            run.tally.add(name, sums)
            run.advance(1)
        lines.append(
            SiteLine(
                site,
                missing[site],
                run.tally.number(name),
                run.tally.number(f"active_rank of {site}"),
                size.network_ranks[site],
            )
        )
    return tuple(lines)


def _faithfulness(sites: tuple[SiteLine, ...]) -> dict[str, distance.Number]:
    missing = [site.missing for site in sites]
    return {
        "faithfulness_mean": distance.Number(float(np.mean(missing))),
        "faithfulness_worst": distance.Number(float(np.max(missing))),
    }


def _distances(run: Run) -> dict[str, distance.Number]:
    names = ["own", "all", "random", "random_half"]
    for kind in ("adversarial", "adversarial_shared"):
        names += [f"{kind}_{steps}" for steps in run.adversary.steps]
    names += [*(f"pooled_{count}" for count in POOLED), "never_needed", "permuted", "zero"]
    return {name: run.tally.number(name) for name in names}


def _cross_entropies(run: Run) -> dict[str, distance.Number]:
    if "ce_own" not in run.tally:
        return {}
    run.tally.put_difference("ce_recovered", "ce_zero", "ce_own", "ce_target")
    names = ("ce_target", "ce_own", "ce_all", "ce_recovered")
    return {name: run.tally.number(name) for name in names}


def _baseline(run: Run, name: str, active_rank: float, active: float) -> list[str]:
    """Lines of a baseline; sentences on what is missing."""
    made = equal_rank.make(
        name,
        run.objective,
        run.target,
        next(run.blocks()),
        count=num_components(run.parts.terms),
        active_rank=active_rank,
        active=active,
    )
    if made is None:
        return [f"{name} is left out: the network is too large for it."]
    fewest = dataclasses.replace(run.adversary, steps=run.adversary.steps[:1])
    number, attacked = 0, cost.attacked_blocks(len(run.masks), run.masks[0][..., 0].size)
    for place, block in enumerate(run.blocks()):
        block = block.without_labels()
        mask = made.choose(run.target, block)
        run.advance(1)
        for piece, here, run.share in rows.pieces(block, mask, _MOST_ENTRIES):
            key, number = jax.random.fold_in(run.key, number), number + 1
            run.measure(f"{name}_own", piece, here, made.parts)
            again = jax.random.fold_in(key, 4)
            run.random(f"{name}_random", piece, here, again, made.parts, jax.random.uniform)
            if place < attacked:
                _adversary(run, f"{name}_adversarial", made.parts, piece, here, key, fewest)
        run.share = 1.0
    if attacked == len(run.masks):
        return []
    return [f"The adversary of {name} meets the first {attacked} of {len(run.masks)} blocks only."]
