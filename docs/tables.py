"""Write docs/results.md from the results.json files kept in docs/results/.

python docs/tables.py                            # rebuild the page
python docs/tables.py runs/tms-5-2 COMMAND...    # keep a run's results first, with its command
python docs/tables.py --variation RUN COMMAND... # the same for a run with other settings
"""

import json
import pathlib
import re
import sys

DOCS = pathlib.Path(__file__).parent
KEPT = ("name", "variant", "versions", "machine", "seconds", "seeds", "summary", "comparison")
HEAD = """# Results

Every run here was made with the command above its table; nothing is left out. `solved` has the
meaning of `results.json`: every feature has a component of its own (TMS: cosine of at least 0.99
and norm ratio in [0.8, 1.2]; residual MLPs: every feature's one component does its work alone;
gated functions: every function has a purity of at least 0.95).
Training is chaotic: a difference in the last digit, as from running a seed alone or beside others,
is of the size of the components after 1000 steps of 40-10, so that a seed's numbers vary as those
of another seed do. Seed 0 of the residual MLPs with batches of 256, at 10k and 40k steps, and 40-10
with three seeds drew their inputs by an earlier use of the random numbers: run again, these seeds
are other seeds (under it, 5-2 had 7 of 8 solved, seed 5 failing, and 40-10 with one seed recovered
25 features). Times are upper bounds: for some runs other work shared the cores.

The errors of residual MLPs are means over 50,000 samples, the paper's over the 25,600 of its code,
read off its figures (≈). Sampling alone leaves a standard error of 0.9 % in our top-k and scrubbed
MSE and, with the same spread, of 1.3 % in the paper's; a difference below 3 %, twice both together,
says nothing. With one layer and the batches of 256 of the paper's code, the scrubbed MSE after 40k
steps is 1.6 % and 2.5 % above the paper's in two seeds; with two layers the top-k MSE of one of two
seeds is 0.1 % above. With batches of 1024, tried for one seed after the shortened runs at the end
of this page, both errors are below the paper's, the top-k MSE by 0.03 %, the scrubbed MSE by 1.8 %.
All these are such differences. That after 10k steps is not (6 %, 7 % and 9 % above in three seeds):
the paper's is of 40k steps, and training longer closes most of the gap. Verdicts don't know about
standard errors: they call every excess a failure.

A feature counts as held by a single component where that component alone takes away 90 % of the
error over a sweep of the feature, by two where the two of largest attribution do. With one layer
and the paper's settings one component holds 41 to 59 of 100 features, with the robust ones 98
or 99, and two hold all. The robust settings train on random halves of the inactive components
(`stochastic`), and scrubbing measures the error of such halves: under them the scrubbed MSE is no
independent check. The paper says that about 22 of 100 are not held by one component; how it counts
may differ.

Gated functions: `scaled purity` measures weights of x, of bits and to the output each in units of
their size in the target; in `weight purity` the weights of bits, 100 where others are near 1, drown
the rest. The run of one step shows the partitioned start by itself: it has the weights of bits in
their places at once, and the rest, and with it every curve, is left to the training (scaled purity
0.74, curve error 2.0, against 0.95 and 0.034 on average over the 16 seeds after 3000 steps). With
a random start and the paper's attributions not one of 16 seeds of the small network is solved. The
paper's settings, all 200k steps, fail on the one seed that was run (below): every component is a
mixture of all functions, purity is 0.22. The paper shows one seed that succeeds.

![Four components of mixed colours](images/gated_functions_paper.png)

![Rank and size of the components of an identity map, for two norms](images/simplicity_norms.png)

The simplicity loss on the identity map of 10 sparse inputs, from a random start, with rounds of
refinement and with one seed (`python docs/simplicity.py`, numbers in `docs/results/linear_map/`).
With the paper's Schatten norm components come closer to rank 1 the larger the coefficient is (1.25
to 1.04), and every one recovers all 10 rows. Over the Frobenius norm the rank stays at about 1.2
and the two largest coefficients recover 9 of the 10: that this norm cannot fall by shrinking shows
in the size of rows only at the largest. Without rounds, tried at two coefficients of the Schatten
norm, 7 are recovered.

This page is written by `python docs/tables.py` from the files in `docs/results/`.
"""


VARIATIONS = """
## What the errors of residual MLPs depend on

Runs with other settings, to see which way each moves the errors; with seed 0, so with the same
target, where the command names no other. Standard errors are 0.9 %. The paper's text says that
batches hold 2048 inputs, its code and appendix 256: larger ones lower the scrubbed error, by 3 %
from 256 to 1024, and by 3 % and 4 % after 40k steps (above), though there with one seed and other
targets. Components that start half as large make no difference; a constant learning rate makes both
errors larger.

"""


def keep(workdir: pathlib.Path, command: str, *, variation: bool) -> None:
    """Copy what matters of a run's results.json, with its command, to docs/results/."""
    results = json.loads((workdir / "results.json").read_text())
    kept = {"command": command} | {key: results[key] for key in KEPT}
    kept["machine"].pop("platform")  # the kernel of a borrowed machine tells nothing
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
    """A number for a table."""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, int):
        return str(value)
    if 0 < abs(value) < 1e-3:
        return f"{value:.2e}".replace("e-0", "e-")
    return f"{value:.4f}" if 0.99 <= value < 1 else f"{value:.3g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def section(result: dict) -> str:
    """One run: command, comparison with the paper, every seed."""
    comparison = table(
        ["", "ours", "paper (APD)", "SPD", "definition"],
        [
            [row["label"], row["ours"], row["paper"] or "–", row["spd"] or "–", row["definition"]]
            for row in result["comparison"]
        ],
    )
    keys = [key for key in result["seeds"][0] if not key.endswith("_standard_error")]
    seeds = table(
        [key.replace("_", " ") for key in keys],
        [[cell(seed[key]) for key in keys] for seed in result["seeds"]],
    )
    compared = f"{comparison}\n\n" if result["comparison"] else ""
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in result["seconds"].items())
    return (
        f"\n## {result['name']}, {result['variant']}\n\n"
        f"`{result['command']}`\n\n{compared}{seeds}\n\n"
        f"Solved: {sum(seed['solved'] for seed in result['seeds'])} of {len(result['seeds'])}. "
        f"Time on {result['machine']['cpu_cores']} CPU cores: {seconds}.\n"
    )


def variations(results: list[dict]) -> str:
    """Runs with other settings, a row each."""
    errors = ("topk_mse", "scrubbed_mse", "antiscrubbed_mse")
    keys = (*errors, "features_represented", "single_component_features")
    rows = []
    for result in results:
        (seed,) = result["seeds"]
        seconds = f"{result['seconds']['decompose']:.0f} s"
        rows.append([f"`{result['command']}`", *(cell(seed[key]) for key in keys), seconds])
    header = ["", *(key.replace("_", " ") for key in keys), "decomposition"]
    return VARIATIONS + table(header, rows) + "\n"


def read(folder: pathlib.Path) -> list[dict]:
    """The kept results of a folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def main(arguments: list[str]) -> None:
    if arguments:
        variation = arguments[0] == "--variation"
        workdir, *command = arguments[variation:]
        keep(pathlib.Path(workdir), " ".join(command), variation=variation)
    sections = [section(result) for result in read(DOCS / "results")]
    if varied := read(DOCS / "results" / "variations"):
        sections.append(variations(varied))
    (DOCS / "results.md").write_text(HEAD + "".join(sections))


if __name__ == "__main__":
    main(sys.argv[1:])
