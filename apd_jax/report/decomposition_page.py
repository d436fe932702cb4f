"""The report of a decomposition of any network, as one offline page.

Letters: N examples, T positions, C components.
"""

import os
import pathlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import logging

from apd_jax import config_fields
from apd_jax.evaluation import baselines, curves, ranks
from apd_jax.evaluation.seen import Seen
from apd_jax.evaluation.summary import ALWAYS, Summary, summarise_seen
from apd_jax.plotting import decomposition_figures, style
from apd_jax.report import numbers, parts, words
from apd_jax.runtime.versions import machine, versions
from apd_jax.runtime.workdir import atomic_write_text
from apd_jax.sites import PyTree

_MAX_ROWS = 200
_MAX_WHOLE, _MAX_OTHERS = 16, 8  # numbers of an example that are shown beside its row
CAPTIONS = {
    "activity": (
        "How often components are active",
        "Share of the examples on which each component is active, above its rank over all sites. "
        "A component that is always on (red) is not told apart by what it is used for.",
    ),
    "active_counts": (
        "What is active on an example",
        "How many components are active on an example, and the rank that they have together; the "
        "red line is the mean. Few components of low rank explain; many, or of a rank near that "
        "of the network, do not.",
    ),
    "error_curves": (
        "How many components are needed",
        "Distance of the output from the target's as more components are switched on; the dotted "
        "line is what this decomposition was asked for. Beside it the same against the rank of "
        "what is on, with what needs no training: singular directions and columns of every matrix.",
    ),
    "attributions": (
        "Attributions",
        "How large attributions are, over all pairs of an example and a component. Two heaps with "
        "a gap between them mean that it is clear what is used on an example.",
    ),
    "singular_values": (
        "Singular values",
        "A line a component, and the target's in blue. Components of rank one have one value; a "
        "component that lies low at a site has next to nothing there.",
    ),
    "faithfulness": (
        "Do the components add up",
        "Share of the squared weights of each site that the sum of all components misses.",
    ),
    "top_examples": (
        "Which examples activate a component most",
        "A row a component, most active first, with the share of the examples that it is active "
        "on; the number below is that of the example, grey where it is not active there.",
    ),
}


def write(
    decomposition: Any, path: str | os.PathLike[str], x: PyTree, labels: Any = None
) -> list[parts.Panel]:
    """Write the page, and return the figures that are on it."""
    text, panels = render(decomposition, x, labels)
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(target, text)
    logging.info("Wrote %s", target)
    return panels


def render(decomposition: Any, x: PyTree, labels: Any) -> tuple[str, list[parts.Panel]]:
    """The page and its figures."""
    found = decomposition.see(x)
    summary = summarise_seen(decomposition, x, found, labels, tuple(baselines.BASELINES))
    panels = _panels(decomposition, x, found, summary, labels)
    settings = config_fields.plain(config_fields.to_mapping(decomposition.settings))
    sentences = dict(config_fields.sentences(decomposition.settings))
    subject = words.Subject(_title(decomposition), "", {}, sentences)
    text = parts.render(
        "own.html.j2",
        title=subject.title,
        what=_what(decomposition),
        how=words.how(settings, inputs="examples"),
        objective=words.objective(settings),
        facts=_facts(decomposition, summary),
        remarks=[r for r in summary.remarks if r.startswith("Trivial")],
        **_summary(summary),
        **_sites(decomposition, summary),
        **_components(decomposition, x, found, summary),
        **parts.assets(False),
        **parts.curves(decomposition.history, [], words.curves(subject), ["0"]),
        gaps=[],
        failed=[],
        panels=[parts.figure(panel) for panel in panels],
        command="",
        versions=versions(),
        config=words.config_rows(settings, sentences),
    )
    return text, panels


def _title(decomposition: Any) -> str:
    network = decomposition.target.apply_fn
    module = getattr(network, "module", None)
    if not isinstance(module, nn.Module):
        module = getattr(module, "value", None)  # wrapped, as a module that holds lists is
    if isinstance(module, nn.Module):
        return type(module).__name__
    return getattr(network, "__name__", type(network).__name__).strip("<>_")


def _what(decomposition: Any) -> str:
    target = decomposition.target
    size = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(target.params))
    covered = sum(int(np.prod(site.shape)) for site in target.sites.values())
    count = len(target.sites)
    plural = "matrix" if count == 1 else "matrices"
    return (
        f"The network has {size:,} parameters, of which {covered:,} are in the {count} {plural} "
        "that were decomposed."
    )


def _facts(decomposition: Any, summary: Summary) -> list[tuple[str, str]]:
    settings, history = decomposition.settings, decomposition.history
    done = history[-1]["step"] if history else settings.steps
    steps = numbers.number(settings.steps)
    if done != settings.steps:
        steps = f"{numbers.number(int(done))} of {steps}"
    return [
        ("components", numbers.number(settings.num_components)),
        ("steps", steps),
        *_search(decomposition),
        ("batch size", numbers.number(settings.batch_size)),
        ("examples looked at", numbers.number(summary.num_examples)),
        ("machine", machine()["device"]),
    ]


def _search(decomposition: Any) -> list[tuple[str, str]]:
    """How k was found, if it was looked for."""
    if not decomposition.pilots:
        return []
    tried = ", ".join(f"{pilot['topk']:.3g}" for pilot in decomposition.pilots)
    return [
        ("k", f"{decomposition.settings.objective.topk:.3g}, after short trainings with {tried}")
    ]


def _summary(summary: Summary) -> dict[str, Any]:
    notes = {
        "network": "as it is",
        "active components": "those with the largest attributions",
        "all components": "their sum in the place of the weights",
        "no components": "zeros in the place of the weights",
        **{
            name: f"{meaning}, as many as that rank" for name, meaning in baselines.MEANINGS.items()
        },
    }
    ways = [vars(row) | {"note": notes.get(row.name, "")} for row in summary.rows]
    active = summary.row("active components")
    always, dead = len(summary.always_on), len(summary.dead)
    return {
        "ways": ways,
        "quality_name": summary.quality_name,
        "notes": [r for r in summary.remarks if not r.startswith("Trivial")],
        "summary": (
            f"On {summary.num_examples:,} examples {active.active_components:.3g} of "
            f"{len(summary.ranks)} components are active on average, of rank "
            f"{active.active_rank:.3g} together; the decomposed matrices have rank "
            f"{summary.network_rank}. {always} always on (more than {ALWAYS:.0%} of the examples), "
            f"{dead} never."
        ),
    }


def _sites(decomposition: Any, summary: Summary) -> dict[str, Any]:
    rows = [
        {
            "name": name,
            "kinds": "; ".join(dict.fromkeys(site.kinds)),
            "shape": " × ".join(map(str, site.shape)),
            "rank": decomposition.components[name].reads.shape[-2],
            "missing": summary.unfaithfulness[name],
        }
        for name, site in decomposition.target.sites.items()
    ]
    left = [(other.path, other.reason) for other in decomposition.target.sites.left]
    return {"site_rows": rows, "left": left}


def _components(decomposition: Any, x: PyTree, found: Seen, summary: Summary) -> dict[str, Any]:
    values = ranks.singular_values(decomposition.components)
    order = np.argsort(-summary.active_share, kind="stable").tolist()
    alive = [c for c in order if summary.active_share[c] > 0]
    what = "examples" if len(found.lead) == 1 else "positions of examples"
    x = jax.tree.map(np.asarray, x)
    hidden = f" The {_MAX_ROWS} most active are shown." if len(alive) > _MAX_ROWS else ""
    return {
        "component_rows": [_component(c, values, x, found, summary) for c in alive[:_MAX_ROWS]],
        "component_words": (
            f"Most active first. A rank counts directions above {ranks.SHARE:.0%} of the target's "
            f"largest singular value at a site; shares of the squared weights below 5 % are left "
            f"out. {what.capitalize()} are counted from 0, among those looked at; one of few "
            f"numbers is written out.{hidden}"
        ),
        "dead": ", ".join(map(str, summary.dead)),
    }


def _component(
    number: int, values: dict[str, np.ndarray], x: PyTree, found: Seen, summary: Summary
) -> dict[str, Any]:
    squares = {name: float(np.sum(v[number] ** 2)) for name, v in values.items()}
    total = max(sum(squares.values()), 1e-300)
    shares = sorted(((s / total, name) for name, s in squares.items()), reverse=True)
    largest = np.sort(np.concatenate([v[number] for v in values.values()]))[::-1][:3]
    rows = np.argsort(-found.scores[:, number], kind="stable")[:6]
    places = np.stack(np.unravel_index(rows, found.lead), axis=1).tolist()
    return {
        "number": number,
        "active": f"{summary.active_share[number]:.1%}",
        "always": summary.active_share[number] > ALWAYS,
        "rank": int(summary.ranks[number]),
        "sites": ", ".join(f"{name} {share:.0%}" for share, name in shares[:3] if share >= 0.05),
        "largest": ", ".join(f"{value:.3g}" for value in largest),
        "examples": [(":".join(map(str, at)), as_text(x, *at)) for at in places],
    }


def _panels(
    decomposition: Any, x: PyTree, found: Seen, summary: Summary, labels: Any
) -> list[parts.Panel]:
    used = summary.row("active components").active_components
    lines = curves.error_curves(decomposition, x, found, summary, labels)
    drawn = {
        "activity": lambda: decomposition_figures.activity(summary),
        "active_counts": lambda: decomposition_figures.active_counts(found, summary),
        "error_curves": lambda: decomposition_figures.error_curves(
            lines, used, summary.quality_name
        ),
        "attributions": lambda: decomposition_figures.attributions(found),
        "singular_values": lambda: decomposition_figures.singular_values(decomposition),
        "faithfulness": lambda: decomposition_figures.faithfulness(summary),
    }
    images = as_images(x)
    if images is not None and len(found.lead) == 1:
        drawn["top_examples"] = lambda: decomposition_figures.top_examples(found, summary, images)
    return [
        parts.Panel(name, *CAPTIONS[name], style.to_png(draw())) for name, draw in drawn.items()
    ]


def as_images(x: PyTree) -> np.ndarray | None:
    """Examples as images [N, h, w]: images as they are, vectors as squares or strips, or None."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(x)]
    if len(leaves) != 1 or leaves[0].dtype.kind != "f" or leaves[0].size // len(leaves[0]) > 4096:
        return None
    array = leaves[0]
    if array.ndim == 4:
        return array.mean(axis=-1)
    if array.ndim == 3:
        return array
    if array.ndim != 2:
        return None
    side = int(round(array.shape[1] ** 0.5))
    if side >= 6 and side * side == array.shape[1]:
        return array.reshape(-1, side, side)
    return array[:, None]


def as_text(x: PyTree, example: int, *positions: int) -> str:
    """An example in short: up to 16 whole numbers, or up to 8 others in two digits.

    Of a longer sequence of whole numbers those around the position, if it is one number, are shown,
    which stands in brackets. Several leaves have their names before them. Empty where nothing is
    short enough.
    """
    leaves = jax.tree_util.tree_leaves_with_path(x)
    position = positions[0] if len(positions) == 1 else None
    texts = []
    for path, leaf in leaves:
        values = np.asarray(leaf[example])
        if values.dtype.kind in "biu" and (values.ndim == 1 or values.size <= _MAX_WHOLE):
            entries = [str(int(value)) for value in values.ravel()]
            if position is not None and position < len(entries):
                entries[position] = f"[{entries[position]}]"
            start = max(0, min((position or 0) - _MAX_WHOLE // 2, len(entries) - _MAX_WHOLE))
            shown = entries[start : start + _MAX_WHOLE]
            shown = ["…"] * (start > 0) + shown + ["…"] * (start + _MAX_WHOLE < len(entries))
        elif values.dtype.kind not in "biu" and values.size <= _MAX_OTHERS:
            shown = [f"{value:.2g}" for value in values.ravel().tolist()]
        else:
            continue
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        texts.append(" ".join([name] * (len(leaves) > 1) + shown))
    return "; ".join(texts)
