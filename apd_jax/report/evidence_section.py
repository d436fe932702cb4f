"""The section of a report that holds the evidence.

Letters: S decompositions.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from apd_jax import sites
from apd_jax.evaluation import tables
from apd_jax.evaluation.compare import SeedMatrix
from apd_jax.evaluation.evidence import Evidence, Verdict, evidence
from apd_jax.evaluation.evidence.result import UNITS, label
from apd_jax.evaluation.labels import label_array
from apd_jax.evaluation.model import ComponentModel
from apd_jax.plotting import evidence_figures, style
from apd_jax.report import numbers, parts
from apd_jax.sites import PyTree

CAPTION = (
    "Distance from the network's output under every mask, with standard errors; an arrow marks a "
    "value below the axis. A vertical tick is the largest value that passes, the dotted line the "
    "distance with no component at all. A good decomposition stays left of the ticks, left of the "
    "singular vectors and neurons of the same size, and far right with the mask of another row."
)
RESTARTS_CAPTION = (
    "MMCS is the mean, over the components of the row, of the largest cosine with any of the "
    "column."
)
CONTROL = (
    "This page has no control, which is the same decomposition of the network with the entries of "
    "every matrix shuffled ({}). If a line is as good on the shuffled network, it is no evidence "
    "about this one."
)
IS_CONTROL = (
    "This is a control: the entries of every decomposed matrix were shuffled before the "
    "decomposition, so that there is nothing to find. A line that is as good here as on the "
    "network itself is no evidence for that network."
)
PREFIX = "evidence_"  # of the numbers in results.json
_EXAMPLES, _POSITIONS = 512, 8192  # of a report's evidence, at most
DRAWS = 2
_UNIT_WORDS = {"components": "a number of components"}


class Section(NamedTuple):
    """The section before it is written out.

    Attributes:
      found: the evidence.
      panels: its figures.
    """

    found: Evidence
    panels: list[parts.Panel]


def measure(decomposition: ComponentModel, x: PyTree, labels: Any = None) -> Evidence:
    """Evidence of a size that a report can wait for.

    Args:
      decomposition: a decomposition.
      x: [N, ...] inputs. The first 512 are taken, or fewer, with 8192 positions in all, where
        components are chosen for positions.
      labels: of these inputs, see `Decomposition.evidence`.
    """
    objective, count = decomposition.objective, min(_EXAMPLES, sites.batch_size(x))
    if objective.per_position:
        length = math.prod(sites.position_shape(decomposition.target, x))
        count = min(count, max(8, _POSITIONS // length))
    some = jax.tree.map(lambda leaf: leaf[:count], x)
    if not isinstance(labels, str):
        labels = label_array(decomposition.target, x, labels)
        labels = None if labels is None else labels[:count]
    return evidence(decomposition, some, labels, adversary_steps=(20,), draws=DRAWS)


def section(found: Evidence, restarts: SeedMatrix | None = None) -> Section:
    """The evidence of a decomposition, with its figures.

    Args:
      found: the evidence of one decomposition.
      restarts: its initialisations compared, where there are several.
    """
    panels = [
        parts.Panel(
            "evidence",
            "How far each mask is from the network",
            CAPTION,
            style.to_png(evidence_figures.distances(found)),
        )
    ]
    if restarts is not None:
        caption = f"{restarts.sentence()} {RESTARTS_CAPTION}"
        picture = style.to_png(evidence_figures.seeds(restarts))
        panels.append(parts.Panel("restarts", "Agreement of restarts", caption, picture))
    return Section(found, panels)


def content(
    made: Section | None,
    *,
    shown: str = "",
    examples: int | None = None,
    all_seeds: Sequence[Evidence] = (),
    failures: Sequence[str] = (),
    remarks: Sequence[str] = (),
    control: str = CONTROL.format("decompose it with `apd_jax.shuffled(params, key)`"),
) -> dict[str, Any]:
    """What `evidence.html.j2` shows, for `parts.render`.

    Args:
      made: the section; None if there is no evidence.
      shown: name of the seed that the section is of, where there are several.
      examples: number of examples of the rest of the report, of which the evidence took the first;
        None where it has inputs of its own.
      all_seeds: the evidence of all seeds that have any, where there are several.
      failures: sentences on the seeds whose evidence could not be measured.
      remarks: other sentences on the evidence, or on why there is none.
      control: sentence on the control.
    """
    if made is None:
        notes = [*remarks, *failures]
        return {"evidence": {"verdicts": [], "notes": notes} if notes else None}
    found = made.found
    starts = f"{found.adversary.starts} random start" + "s" * (found.adversary.starts > 1)
    passed = sum(verdict.passed for verdict in found.verdicts)
    of_seed = f" Figure, verdicts and numbers are those of seed {shown}." if shown else ""
    by_seed = {"All seeds": _of_seeds(all_seeds)} if all_seeds else {}
    return {
        "evidence": {
            "summary": (
                f"{passed} of {len(found.verdicts)} verdicts pass, on "
                f"{_examples(found.num_examples, examples)}. {found.rows_sentence()}{of_seed} The "
                f"distance is the {UNITS[found.distance]}. The adversary "
                f"takes {found.adversary.steps[-1]} signed gradient steps of "
                f"{found.adversary.step_size:g} from {starts}; random masks are means of "
                f"{found.draws} draws."
            ),
            "verdicts": [_verdict(verdict, all_seeds, len(failures)) for verdict in found.verdicts],
            "tables": found.tables() | by_seed,
            "notes": [*found.notes, *remarks, control, *failures],
            "panels": [parts.figure(panel) for panel in made.panels],
        }
    }


def _examples(count: int, among: int | None) -> str:
    """Which examples the evidence is of."""
    if among is None:
        return f"{count:,} examples of its own"
    if count == among:
        return f"all {count:,} examples of this report"
    return f"the first {count:,} of the {among:,} examples of this report"


def _of_seeds(all_seeds: Sequence[Evidence]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table with every number's mean and range over seeds."""
    rows = []
    for name in all_seeds[0].numbers:
        values = np.array([found[name] for found in all_seeds if name in found.numbers])
        shown = values.mean(), values.std(), values.min(), values.max()
        rows.append([label(name), *(tables.number(float(value)) for value in shown)])
    return ["number", "mean", "± std", "least", "largest"], rows


def _verdict(verdict: Verdict, all_seeds: Sequence[Evidence], missing: int) -> dict[str, Any]:
    seeds = ""
    if all_seeds:
        passed = sum(verdict.name not in found.failed for found in all_seeds)
        seeds = f"{passed} of {len(all_seeds) + missing} seeds pass"
        seeds += f", {missing} not measured." if missing else "."
    where = f" at {verdict.where}" if verdict.where else ""
    value = numbers.against(float(verdict.value), float(verdict.limit))
    return {
        "name": verdict.name,
        "passed": verdict.passed,
        "value": value,
        "unit": f"{_UNIT_WORDS.get(verdict.unit, 'a share ' + verdict.unit)}{where}",
        "limit": numbers.threshold(float(verdict.limit)),
        "meaning": verdict.meaning,
        "seeds": seeds,
    }
