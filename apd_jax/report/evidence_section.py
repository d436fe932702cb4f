"""The section of a report that holds the evidence.

Letters: S decompositions.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from apd_jax import sites
from apd_jax.evaluation.compare import SeedMatrix
from apd_jax.evaluation.evidence import Evidence, evidence
from apd_jax.evaluation.evidence.result import UNITS
from apd_jax.plotting import evidence_figures, style
from apd_jax.report import numbers, parts

CAPTION = (
    "Distance from the network's output under every mask, with standard errors; an arrow stands "
    "for less than the axis shows. The dotted line is the distance with no component at all. A "
    "good decomposition stays far left of it in every line but the mask of another row, and left "
    "of the singular vectors and neurons of the same size."
)
SEEDS_CAPTION = (
    "Every pair of decompositions. MMCS is the mean, over the components of the row, of the "
    "largest cosine with any of the column; a component has a partner where their cosine is at "
    "least 0.9."
)
_EXAMPLES, _POSITIONS = 512, 8192  # of a report's evidence
_STEPS, _DRAWS = (20,), 2
_UNIT_WORDS = {"components": "a number of components"}


class Section(NamedTuple):
    """The section before it is written out.

    Attributes:
      found: the evidence.
      panels: its figures.
    """

    found: Evidence
    panels: list[parts.Panel]


def few(decomposition: Any, x: Any, labels: Any = None) -> Evidence:
    """Evidence of a size that a report can wait for: the first 512 examples, 20 steps."""
    objective, count = decomposition.objective, min(_EXAMPLES, sites.batch_size(x))
    if objective.per_position:
        length = sites.num_positions(decomposition.target, x)
        count = min(count, max(8, _POSITIONS // length))
    some = jax.tree.map(lambda leaf: leaf[:count], x)
    labels = None if labels is None else np.asarray(labels)[:count]
    return evidence(decomposition, some, labels, adversary_steps=_STEPS, draws=_DRAWS)


def section(found: Evidence, seeds: SeedMatrix | None = None) -> Section:
    """The evidence of a decomposition, with its figures.

    Args:
      found: the evidence of one decomposition.
      seeds: several decompositions compared, where there are some.

    """
    panels = [
        parts.Panel(
            "evidence",
            "How far each mask is from the network",
            CAPTION,
            style.to_png(evidence_figures.distances(found)),
        )
    ]
    if seeds is not None:
        picture = style.to_png(evidence_figures.seeds(seeds))
        panels.append(parts.Panel("seeds", "Other seeds", SEEDS_CAPTION, picture))
    return Section(found, panels)


def content(made: Section) -> dict[str, Any]:
    """What `evidence.html.j2` shows, for `parts.render`."""
    found = made.found
    starts = f"{found.adversary.starts} random start" + "s" * (found.adversary.starts > 1)
    passed = sum(verdict.passed for verdict in found.verdicts)
    return {
        "evidence": {
            "summary": (
                f"{passed} of {len(found.verdicts)} verdicts pass, on {found.num_examples:,} "
                f"examples. The distance is the {UNITS[found.distance]}. The adversary takes "
                f"signed gradient steps of {found.adversary.step_size:g} from {starts}; random "
                f"masks are means of {found.draws} draws."
            ),
            "verdicts": [_verdict(verdict) for verdict in found.verdicts],
            "tables": found.tables(),
            "notes": list(found.notes),
            "panels": [parts.figure(panel) for panel in made.panels],
        }
    }


def _verdict(verdict: Any) -> dict[str, Any]:
    where = f" at {verdict.where}" if verdict.where else ""
    value = numbers.against(float(verdict.value), float(verdict.limit))
    return {
        "name": verdict.name,
        "passed": verdict.passed,
        "value": value,
        "unit": f"{_UNIT_WORDS.get(verdict.unit, 'a share ' + verdict.unit)}{where}",
        "limit": numbers.threshold(float(verdict.limit)),
        "meaning": verdict.meaning,
    }
