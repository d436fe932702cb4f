"""Every line of the evidence, measured block by block.

Letters: N examples, B examples of a block, T positions, C components.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from apd_jax import randomness, validity
from apd_jax.blocks import num_blocks
from apd_jax.config_fields.values import names, root_seed, whole
from apd_jax.errors import UserError
from apd_jax.evaluation import findings, ranks
from apd_jax.evaluation.evidence import block_lines, cost, distance, equal_rank, rows
from apd_jax.evaluation.evidence.adversary import Adversary, worst_shared
from apd_jax.evaluation.evidence.baseline_lines import Against
from apd_jax.evaluation.evidence.result import Evidence, SiteLine
from apd_jax.evaluation.evidence.run import Run
from apd_jax.evaluation.evidence.size import Size
from apd_jax.evaluation.evidence.verdicts import Limits
from apd_jax.programs.jax_settings import own_settings
from apd_jax.runtime.progress import Progress
from apd_jax.sites import PyTree

_TARGETED = (
    "This is a targeted decomposition, measured without the remainder: its components need not add "
    "up to the weights, so that verdicts on all components and on sites are expected to fail."
)


@own_settings()
def evidence(
    decomposition: Any, x: PyTree, labels: Any = None, *, limits: Limits | None = None, **options
) -> Evidence:
    """Measure every line of the evidence; see `Decomposition.evidence`."""
    if not isinstance(limits, Limits | None):
        raise UserError(f"limits must be Limits, as in Limits(own=0.2), got {limits!r:.200}")
    run, notes = prepared(decomposition, x, labels, **options)
    assert run.cost is not None
    run.progress = Progress(run.cost.passes, "evidence", "forward pass", opening=str(run.cost))
    with run.progress:
        return _measure(run, notes, limits or Limits())


def prepared(
    decomposition: Any,
    x: PyTree,
    labels: Any = None,
    *,
    valid: Any = None,
    adversary_steps: Sequence[int] = (20, 80),
    adversary_step_size: float = 0.1,
    adversary_starts: int = 1,
    draws: int = 4,
    baselines: str | Sequence[str] | None = tuple(equal_rank.NAMES),
    seed: int = 0,
) -> tuple[Run, list[str]]:
    """Check everything and count the operations, before anything is measured.

    Returns:
      The measurement to come, and sentences on what is left out.
    """
    baselines = tuple(dict.fromkeys(names("baselines", baselines)))
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
        components=decomposition.components,
        kind=distance.kind_of(objective.minimality_loss),
        examples=found,
        block_size=decomposition.settings.batch_size,
        adversary=Adversary(adversary_steps, adversary_step_size, adversary_starts),
        draws=whole("draws", draws),
        key=randomness.stream(root_seed(seed), "evidence"),
    )
    run.baselines = tuple(equal_rank.fitting(baselines, target, next(run.blocks())))
    notes = ["Labels are values, not classes: they have no cross entropy."] if values else []
    notes += [_TARGETED] if objective.targeted else []
    notes += [
        f"{name} is left out: the network is too large for it."
        for name in baselines
        if name not in run.baselines
    ]
    run.cost = _cost(run)
    return run, notes


def _counted(objective: Any, target: Any, x: PyTree) -> Any:
    """What counts, as in the training: [N] where outputs have no positions."""
    valid = objective.counted(x)
    if valid is None:
        return None
    return np.asarray(validity.of_outputs(valid, jax.eval_shape(target, x)))


def _cost(run: Run) -> cost.Cost:
    block = next(run.blocks())
    count = len(run.examples.counts)
    return cost.estimate(
        objective=run.objective,
        target=run.target,
        components=run.components,
        kind=run.kind,
        block=block._replace(outputs=jax.eval_shape(run.target, block.x)),
        examples=count,
        blocks=num_blocks(count, run.block_size),
        draws=run.draws,
        adversary=run.adversary,
        baselines=run.baselines,
    )


def _measure(run: Run, notes: list[str], limits: Limits) -> Evidence:
    distance.check_some_output(run.kind, run.target, run.blocks())
    size = Size(run.target, run.components)
    for block in run.blocks():
        mask = rows.choose(run.objective, run.target, run.components, block)
        run.masks.append(rows.packed(mask))
        size.add(run.tally, mask, block)
        run.advance("scores")
    numbers = size.numbers(run.tally)
    notes += _blocks(run, size, numbers)
    _shared(run)
    sites = _sites(run, size)
    numbers |= _distances(run)
    numbers |= _cross_entropies(run, notes)
    numbers |= {n: run.tally.number(n) for n in run.tally.names() if n.startswith(run.baselines)}
    if numbers["zero"].value <= 0:
        notes.append(
            "The output with no component equals the network's output: verdicts judge the "
            "distances themselves, not shares of the distance with no component."
        )
    assert run.cost is not None
    return Evidence(
        numbers=numbers | _faithfulness(sites),
        sites=sites,
        distance=run.kind,
        num_examples=len(run.examples.counts),
        num_rows=size.rows,
        per_position=run.objective.per_position,
        num_components=len(size.active),
        network_rank=size.network_rank,
        active_share=size.active / max(size.rows, 1),
        adversary=run.adversary,
        draws=run.draws,
        limits=limits,
        notes=tuple(notes),
        cost=run.cost,
    )


def _blocks(run: Run, size: Size, numbers: dict[str, distance.Number]) -> list[str]:
    """Measure the lines block by block; return notes on exceptions."""
    assert run.cost is not None
    fewest = block_lines.POOLED[-1]
    sums = block_lines.SharedMatrices(run, size.active > 0)
    wanted = equal_rank.SizeToMatch(
        len(size.active), numbers["active_rank"].value, numbers["l0"].value
    )
    against = Against(run, wanted)
    for place, (block, mask) in enumerate(run.masked_blocks()):
        block = block._replace(outputs=distance.outputs(run.target, block.x))
        distance.check_finite(run.kind, block)
        run.advance("outputs")
        key = jax.random.fold_in(run.key, place)
        fewest = min(fewest, block_lines.add(run, block, mask, sums, key))
        against.add(place, block)
    attacked, blocks = run.cost.attacked, run.cost.blocks
    notes = [
        f"The adversary attacks {name} on the first {attacked} of {blocks} blocks only."
        for name in run.baselines
        if attacked < blocks
    ]
    if "permuted" not in run.tally:
        notes.append(
            "No block has two rows that count: the mask of another row is left out, as there is "
            "no other row."
        )
    if fewest < block_lines.POOLED[-1]:
        notes.append(
            f"A block has only {fewest} rows that count: if a group of pooled rows needs more, all "
            "rows of the block are one group."
        )
    return notes


def _shared(run: Run) -> None:
    """The worst mask that all rows share."""
    found = worst_shared(
        run.adversary,
        run.kind,
        run.target,
        run.components,
        run.masked_blocks,
        jax.random.fold_in(run.key, 2**31),
        lambda runs: run.advance("shared", runs),
    )
    for steps, parts in found.items():
        for sums in parts:
            run.tally.add(f"adversarial_shared_{steps}", sums)


def _sites(run: Run, size: Size) -> tuple[SiteLine, ...]:
    """What every site misses, and the distance with this site alone replaced by its sum."""
    missing = ranks.unfaithfulness(run.target, run.components)
    return tuple(
        SiteLine(
            site,
            missing[site],
            run.tally.number(f"replaced {site}"),
            run.tally.number(f"active_rank of {site}"),
            size.network_ranks[site],
        )
        for site in run.components
    )


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
    names += [
        *(f"pooled_{count}" for count in block_lines.POOLED),
        "never_needed",
        *(["permuted"] if "permuted" in run.tally else []),
        "zero",
    ]
    return {name: run.tally.number(name) for name in names}


def _cross_entropies(run: Run, notes: list[str]) -> dict[str, distance.Number]:
    if "ce_own" not in run.tally:
        return {}
    names = ["ce_target", "ce_own", "ce_all"]
    network, own, none = (run.tally.number(f"ce_{n}").value for n in ("target", "own", "zero"))
    if not np.isfinite([network, own, none]).all():
        notes.append(f"{findings.INFINITE} The share that is recovered is left out.")
    elif np.isclose(network, none, rtol=1e-6, atol=0):
        notes.append(
            "The cross entropy with no component is the network's: there is nothing to recover, "
            "and the share that is recovered is left out."
        )
    else:
        if network > none:
            notes.append(
                "The network's cross entropy is larger than that of no component: there is nothing "
                "to recover, and what is called recovered is no share. Check that the labels are "
                "those of the network's classes."
            )
        run.tally.put_difference("ce_recovered", "ce_zero", "ce_own", "ce_target")
        names.append("ce_recovered")
    return {name: run.tally.number(name) for name in names}
