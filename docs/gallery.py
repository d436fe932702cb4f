"""Pages of the gallery, one for each run of evidence_runs.json: a hook of mkdocs.

A page has the run's command, the numbers that are kept in results/, and the report if the run was
made on this machine, by launch/gallery.sh.
"""

import json
import pathlib
import runpy

from mkdocs.structure.files import File, InclusionLevel

DOCS = pathlib.Path(__file__).parent
REPORTS = DOCS.parent / "runs" / "evidence"  # where evidence_runs.py runs them
TABLES = runpy.run_path(str(DOCS / "tables.py"))
MARK = "<!-- gallery -->"


def on_files(files, config):
    """Add a page for every run, and the reports that there are."""
    for run, kept in zip(_runs(), _kept(), strict=True):
        report = REPORTS / run["name"] / "report.html"
        place = f"gallery/reports/{run['name']}.html"
        if report.is_file():
            files.append(File.generated(config, place, abs_src_path=str(report)))
        content = _page(run, kept, report.is_file())
        page = File.generated(config, f"gallery/{run['name']}.md", content=content)
        page.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(page)
    return files


def on_page_markdown(markdown, page, config, files):
    """Fill the list of the gallery."""
    rows = [
        [f"[{run['title']}](gallery/{run['name']}.md)", _failed(kept), str(run["minutes"])]
        for run, kept in zip(_runs(), _kept(), strict=True)
    ]
    heads = ["run", "verdicts of the evidence that fail (in how many seeds)", "minutes"]
    return markdown.replace(MARK, TABLES["table"](heads, rows))


def _runs():
    return json.loads((DOCS / "evidence_runs.json").read_text("utf-8"))


def _kept():
    """The kept results of every run, None where there are none."""
    folders = (DOCS / "results", DOCS / "results" / "examples")
    results = [kept for folder in folders for kept in TABLES["read"](folder)]
    by_command = {TABLES["_plain"](kept["command"]): kept for kept in results}
    return [by_command.get(TABLES["_plain"](run["command"])) for run in _runs()]


def _failed(kept):
    verdicts = (kept or {}).get("evidence_verdicts")
    return TABLES["_failed"](verdicts) if verdicts else "not measured"


def _page(run, kept, has_report):
    parts = [f"# {run['title'][0].upper()}{run['title'][1:]}"]
    if "image" in run:
        parts.append(f"![{run['title']}](../images/{run['image']})")
    parts.append(f"```bash\n{run['command']}\n```")
    if has_report:
        place = f"reports/{run['name']}.html"
        parts += [
            f"[Open the report]({place}) on a page of its own, or read it here:",
            f'<iframe class="report" src="{place}" title="Report"></iframe>',
        ]
    else:
        parts.append("The report was not made on the machine that built this site.")
    parts.append(f"Verdicts of the evidence that fail: {_failed(kept)}.")
    if kept and "comparison" in kept:
        parts += [TABLES["comparison"]([kept]), TABLES["per_seed"]([kept])]
    if kept:
        parts.append(TABLES["evidence"]([kept]).replace("(evidence.md)", "(../evidence.md)"))
    return "\n\n".join(part for part in parts if part) + "\n"
