"""Fill the tables of docs/results.md from the results.json files kept in docs/results/.

python docs/tables.py                            # fill the tables
python docs/tables.py runs/tms-5-2 COMMAND...    # keep the results of a run first, with its command
python docs/tables.py --variation RUN COMMAND... # the same for a run with varied settings
python docs/evidence_runs.py                     # the runs of the table of evidence

The page is edited by hand, except for what stands between `<!-- runs: NAME -->` and `<!-- end -->`.
"""

import collections
import json
import pathlib
import re
import statistics
import sys

DOCS = pathlib.Path(__file__).parent
PAGE = DOCS / "results.md"
KEPT = ("name", "variant", "versions", "machine", "seconds", "seeds", "summary", "comparison")
EVIDENCE = "evidence_"  # starts the names of the numbers of the evidence
RUNS = DOCS / "evidence_runs.json"  # whose evidence stands in one table
FEW = 4  # seeds, that have a column each
MARK = re.compile(r"<!-- runs: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def keep(workdir: pathlib.Path, command: str, *, variation: bool) -> None:
    """Copy the main parts of a run's results.json, with its command, to docs/results/."""
    results = json.loads((workdir / "results.json").read_text())
    kept = {"command": command} | {key: results[key] for key in KEPT}
    if results.get("evidence_verdicts"):
        kept["evidence_verdicts"] = results["evidence_verdicts"]
    kept["machine"].pop("platform")  # the kernel version of the machine is of no interest
    steps, first = results["config"]["steps"], results["config"]["seed"]
    seeds = f"{len(results['seeds'])}-seeds" + (f"-from-{first}" if first else "")
    changed = re.findall(r"--config\.(?!steps|seed)([\w.]+)=('[^']*'|\S+)", command)
    plain = re.compile(r"[^\w.]+")
    settings = "".join(f"-{field}-{plain.sub('_', value).strip('_')}" for field, value in changed)
    name = f"{kept['name']}-{kept['variant']}-{steps}-steps-{seeds}{settings}.json"
    path = DOCS / "results" / ("variations" if variation else "") / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n")


def cell(value) -> str:
    """A value as the text of a table cell."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, int):
        return str(value)
    if 0 < abs(value) < 1e-3:
        return f"{value:.2e}".replace("e-0", "e-")
    return f"{value:.4f}" if 0.99 <= value < 1 else f"{value:.3g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def settings_of(result: dict) -> str:
    """The config of a run and the fields that its command sets, but for seeds."""
    fields = re.findall(r"--config\.(\S+)", result["command"])
    changed = [field for field in fields if not re.match(r"seeds?=", field)]
    return ", ".join([f"{result['name']}.py:{result['variant']}", *changed])


def group(settings: str, results: list[dict]) -> str:
    """Runs with the same settings: their commands, comparison with the paper, every seed."""
    commands = [f"{i}. `{result['command']}`" for i, result in enumerate(results, 1)]
    solved = [seed["solved"] for result in results for seed in result["seeds"]]
    parts = [
        f"### {settings}",
        "\n".join(commands) if len(results) > 1 else f"`{results[0]['command']}`",
        comparison(results),
        per_seed(results),
        evidence(results),
        f"Solved: {sum(solved)} of {len(solved)}. {times(results)}",
    ]
    return "\n\n".join(part for part in parts if part)


def comparison(results: list[dict]) -> str:
    """The measures that are published, a column for each run."""
    if not results[0]["comparison"]:
        return ""
    runs = [f"run {i + 1}" for i in range(len(results))] if len(results) > 1 else ["ours"]
    rows = []
    for measures in zip(*(result["comparison"] for result in results), strict=True):
        one = measures[0]
        published = [one["paper"] or "–", one["spd"] or "–"]
        rows.append([one["label"], *(measure["ours"] for measure in measures), *published])
    return table(["", *runs, "paper (APD)", "SPD"], rows)


def per_seed(results: list[dict]) -> str:
    """Every measure of every seed; measures that are equal in all seeds are named once."""
    runs = [(i, seed) for i, result in enumerate(results, 1) for seed in result["seeds"]]
    names = dict.fromkeys(key for _, seed in runs for key in seed)
    rows = [
        {"run": run} | {key: seed.get(key) for key in names if not _elsewhere(key)}
        for run, seed in runs
    ]
    cells = [{key: cell(value) for key, value in row.items()} for row in rows]
    constant = {
        key: values.pop()
        for key in cells[0]
        if len(cells) > 1 and len(values := {row[key] for row in cells}) == 1
    }
    shown = [key for key in cells[0] if key not in constant and (key != "run" or len(results) > 1)]
    text = table(
        [key.replace("_", " ") for key in shown], [[row[key] for key in shown] for row in cells]
    )
    constant.pop("run", None)
    constant.pop("solved", None)
    listed = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in constant.items())
    return text + (f"\n\nIn every seed: {listed}." if listed else "")


def _elsewhere(key: str) -> bool:
    """Whether a number is not a column of the table of seeds."""
    return key.endswith("_standard_error") or key.startswith(EVIDENCE)


def evidence(results: list[dict]) -> str:
    """The evidence of every seed, a row for every line, with standard errors; empty without any."""
    every = [seed for result in results for seed in result["seeds"]]
    seeds = [seed for seed in every if any(key.startswith(EVIDENCE) for key in seed)]
    names = dict.fromkeys(key for seed in seeds for key in seed if key.startswith(EVIDENCE))
    several = len(seeds) > FEW
    rows = [
        [
            name.removeprefix(EVIDENCE).replace("_", " "),
            *(_range(seeds, name) if several else (_with_error(s, name) for s in seeds)),
        ]
        for name in names
        if not name.endswith("_se")
    ]
    if not rows:
        return ""
    heads = [f"seed {seed['seed']}" for seed in seeds]
    if several:
        heads = [f"mean of {len(seeds)} seeds", "± std", "least", "largest"]
    return "Evidence ([what the lines mean](evidence.md)):\n\n" + table(["line", *heads], rows)


def _range(seeds: list[dict], name: str) -> list[str]:
    values = [seed[name] for seed in seeds if seed.get(name) is not None]
    if not values:
        return [cell(None)] * 4
    spread = statistics.pstdev(values)
    return [cell(v) for v in (statistics.fmean(values), spread, min(values), max(values))]


def evidence_of_all(runs: list[dict], kept: list[dict]) -> str:
    """The evidence of the studies and examples side by side, a row each; also of those not run.

    Args:
      runs: `docs/evidence_runs.json`.
      kept: results of runs, found by their command.
    """
    by_command = {_plain(result["command"]): result for result in kept}
    rows = []
    for run in runs:
        result = by_command.get(_plain(run["command"]), {"seeds": []})
        seeds = [s for s in result["seeds"] if s.get(f"{EVIDENCE}own") is not None]
        if not seeds:
            rows.append([run["title"], "not measured", *[cell(None)] * len(COLUMNS)])
            continue
        cells = [_span([s.get(EVIDENCE + name) for s in seeds]) for name in COLUMNS]
        every = len(result["seeds"])
        count = str(every) if len(seeds) == every else f"{len(seeds)} of {every}"
        rows.append([run["title"], count, *cells, _failed(result.get("evidence_verdicts", {}))])
    heads = ["run", "seeds", *COLUMNS.values(), "verdicts that fail (in how many seeds)"]
    return table(heads, [row + [cell(None)] * (len(heads) - len(row)) for row in rows])


COLUMNS = {
    "own": "own",
    "all": "all",
    "random": "random",
    "random_half": "halves",
    "adversarial_20": "adversarial, 20",
    "adversarial_shared_20": "one mask for all",
    "pooled_64": "pooled, 64",
    "never_needed": "never needed",
    "permuted": "another row's mask",
    "l0": "active",
    "svd_own": "singular vectors",
    "bundled_own": "bundles",
    "neurons_own": "neurons",
}


def _plain(command: str) -> str:
    """A command without the interpreter or script that starts it."""
    return re.sub(r"^(python -m apd_jax.main|bash launch/run.sh) ", "", command)


def _span(values: list[float | None]) -> str:
    found = sorted(value for value in values if value is not None)
    if not found or found[0] == found[-1]:
        return cell(found[0] if found else None)
    return f"{cell(found[0])} to {cell(found[-1])}"


def _failed(verdicts: dict) -> str:
    """Names of verdicts that fail, and in how many seeds where there are several."""
    if not verdicts:
        return "not kept"
    counts = collections.Counter(name for one in verdicts.values() for name in one["failed"])
    several = len(verdicts) > 1
    texts = [f"{name} ({count})" if several else name for name, count in counts.items()]
    return ", ".join(texts) or "none"


def _with_error(seed: dict, name: str) -> str:
    value, error = seed.get(name), seed.get(f"{name}_se")
    return cell(value) + ("" if error is None else f" ± {error:.1g}")


def times(results: list[dict]) -> str:
    """Seconds of the stages of every run."""
    cores = results[0]["machine"]["cpu_cores"]
    runs = [
        ", ".join(f"{name} {value:.0f} s" for name, value in result["seconds"].items())
        for result in results
    ]
    if len(runs) > 1:
        runs = [f"run {i}: {run}" for i, run in enumerate(runs, 1)]
    return f"Time on {cores} CPU cores: {'; '.join(runs)}."


def variations(results: list[dict]) -> str:
    """Runs with varied settings, a row each."""
    errors = ("topk_mse", "scrubbed_mse", "antiscrubbed_mse")
    keys = (*errors, "features_represented", "single_component_features")
    rows = []
    for result in results:
        (seed,) = result["seeds"]
        seconds = f"{result['seconds']['decompose']:.0f} s"
        rows.append([settings_of(result), *(cell(seed[key]) for key in keys), seconds])
    header = ["settings", *(key.replace("_", " ") for key in keys), "decomposition"]
    return table(header, rows)


def read(folder: pathlib.Path) -> list[dict]:
    """The kept results of a folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def fill(page: str) -> str:
    """Put the tables of all kept runs into a page.

    Raises:
      KeyError: the page has a mark for which no results are kept.
    """
    groups: dict[str, dict[str, list[dict]]] = {}
    for result in read(DOCS / "results"):
        groups.setdefault(result["name"], {}).setdefault(settings_of(result), []).append(result)
    texts = {
        name: "\n\n".join(group(settings, results) for settings, results in found.items())
        for name, found in groups.items()
    }
    kept = [*read(DOCS / "results"), *read(DOCS / "results" / "examples")]
    texts["evidence"] = evidence_of_all(json.loads(RUNS.read_text()), kept)
    texts["variations"] = variations(read(DOCS / "results" / "variations"))
    return MARK.sub(
        lambda mark: f"<!-- runs: {mark[1]} -->\n\n{texts[mark[1]]}\n\n<!-- end -->", page
    )


def main(arguments: list[str]) -> None:
    if arguments:
        variation = arguments[0] == "--variation"
        workdir, *command = arguments[variation:]
        keep(pathlib.Path(workdir), " ".join(command), variation=variation)
    PAGE.write_text(fill(PAGE.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
