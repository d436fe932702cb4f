"""One page that links the reports of several runs and shows their results in one table."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from apd_jax.report import numbers, parts, words


class FinishedRun(NamedTuple):
    """One finished run.

    Attributes:
      title: what was decomposed, a few words.
      link: address of its report, relative to the index page.
      results: content of its results.json.
      name: name of its directory, which tells runs of one title apart.
    """

    title: str
    link: str
    results: Mapping[str, Any]
    name: str


def render_index(
    runs: Sequence[FinishedRun], missing: Sequence[str], others: Sequence[tuple[str, str]] = ()
) -> str:
    """Write the index of several runs as a single HTML page.

    Args:
      runs: the finished runs, in reading order.
      missing: names of runs that are not finished; the page says so.
      others: names and addresses of other reports, such as those of sweeps.

    Returns:
      The page. Everything in it that came from the arguments is escaped.
    """
    rows = [_row(run) for run in runs]
    return parts.render(
        "index.html.j2",
        title="All runs",
        rows=rows,
        missing=missing,
        others=others,
        total=numbers.seconds(sum(_seconds(run.results) for run in runs)),
        **parts.assets(with_browser=False),
    )


def _row(run: FinishedRun) -> dict[str, Any]:
    """What the table says about one run."""
    verdicts = run.results.get("verdicts") or []
    return {
        "title": run.title,
        "link": run.link,
        "name": run.name,
        "command": run.results.get("command", ""),
        "solved": words.solved(run.results),
        "passed": sum(bool(verdict["passed"]) for verdict in verdicts),
        "verdicts": len(verdicts),
        "comparison": run.results.get("comparison") or [],
        "duration": numbers.seconds(_seconds(run.results)),
    }


def _seconds(results: Mapping[str, Any]) -> float:
    """Time of a run: target, decomposition, evaluation and evidence."""
    return float(sum(results["seconds"].values()))
