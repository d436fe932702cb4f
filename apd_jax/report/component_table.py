"""The components of a report, one row each, with the examples they are most important for.

Letters: C components.
"""

from typing import Any

import jax
import numpy as np

from apd_jax.evaluation import ranking, ranks, without
from apd_jax.evaluation.model import ComponentModel
from apd_jax.evaluation.seen import Seen
from apd_jax.evaluation.summary import ALWAYS, Summary
from apd_jax.report import examples, numbers
from apd_jax.sites import PyTree

_MAX_ROWS, _EXAMPLES = 200, 6


def content(
    decomposition: ComponentModel,
    x: PyTree,
    found: Seen,
    summary: Summary,
    decode: examples.Decode | None,
) -> dict[str, Any]:
    """What `own.html.j2` shows of components, for `parts.render`."""
    order = np.argsort(-summary.active_share, kind="stable").tolist()
    alive = [c for c in order if summary.active_share[c] > 0]
    x = jax.tree.map(np.asarray, x)
    return {
        "component_rows": _rows(decomposition, alive[:_MAX_ROWS], x, found, summary, decode),
        "component_words": _words(decomposition, x, found, len(alive)),
        "dead": ", ".join(map(str, summary.dead)),
    }


def _words(decomposition: ComponentModel, x: PyTree, found: Seen, alive: int) -> str:
    what = "examples" if len(found.lead) == 1 else "positions of examples"
    hidden = f" Only the {_MAX_ROWS} most active are shown." if alive > _MAX_ROWS else ""
    unit = "mean squared difference over that of a zero output"
    if decomposition.objective.minimality_loss == "kl":
        unit = "KL divergence in nats"
    return (
        f"Most active first. A rank counts directions above {ranks.SHARE:.0%} of the target's "
        "largest singular value at a site. Shares of the squared weights below 5 % are omitted. "
        f"{what.capitalize()} of this report are numbered from 0; the short ones are written out. "
        "They are ranked by the component's share of the squared attributions there. Without it: "
        "the change of the output on these examples when the component is taken out of the sum of "
        f"all components ({unit}).{hidden}{_why_not_drawn(x, found)}"
    )


def _why_not_drawn(x: PyTree, found: Seen) -> str:
    """A sentence on why there are no pictures of the examples; empty if there are."""
    if len(found.lead) > 1:
        return " Examples are not drawn, since components are chosen for their positions."
    pictures = examples.as_pictures(x)
    return "" if pictures.images is not None else f" Examples are not drawn: {pictures.why}."


def _rows(
    decomposition: ComponentModel,
    shown: list[int],
    x: PyTree,
    found: Seen,
    summary: Summary,
    decode: examples.Decode | None,
) -> list[dict[str, Any]]:
    values = ranks.singular_values(decomposition.components)
    share = ranking.shares(found.scores)
    best = {c: ranking.rows(share[:, c], _EXAMPLES) for c in shown}
    places = {c: np.stack(found.places(rows), axis=1) for c, rows in best.items()}
    if not shown:
        return []
    taken, on = np.array([(c, at[0]) for c in shown for at in places[c]]).T
    change = without.changes(decomposition, x, taken, on)
    return [
        {
            "number": c,
            "active": f"{summary.active_share[c]:.1%}",
            "always": summary.active_share[c] > ALWAYS,
            "rank": int(summary.ranks[c]),
            "without": _mean(change[taken == c]),
            "examples": [example(x, at, decode) for at in places[c].tolist()],
            **_weights(c, values),
        }
        for c in shown
    ]


def _mean(change: np.ndarray) -> str:
    """The mean of the distances that are defined; a dash if none is."""
    defined = change[~np.isnan(change)]
    return numbers.number(float(defined.mean()), 3) if defined.size else "–"


def _weights(number: int, values: dict[str, np.ndarray]) -> dict[str, str]:
    squares = {name: float(np.sum(v[number] ** 2)) for name, v in values.items()}
    total = max(sum(squares.values()), 1e-300)
    shares = sorted(((s / total, name) for name, s in squares.items()), reverse=True)
    largest = np.sort(np.concatenate([v[number] for v in values.values()]))[::-1][:3]
    return {
        "sites": ", ".join(f"{name} {share:.0%}" for share, name in shares[:3] if share >= 0.05),
        "largest": ", ".join(f"{value:.3g}" for value in largest),
    }


def example(x: PyTree, at: list[int], decode: examples.Decode | None) -> dict[str, Any]:
    """What a table shows of an example: its number, and its text before, at and after a position.

    Args:
      x: inputs of NumPy.
      at: number of the example, and of the position along each axis.
      decode: gives the text of tokens.
    """
    if decode is None:
        text = examples.as_text(x, *at), "", ""
    else:
        text = examples.decoded(x, decode, *at)
    return {"place": ":".join(map(str, at)), "text": text, "code": decode is not None}
