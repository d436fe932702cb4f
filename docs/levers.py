"""Change one setting of the language model's decomposition at a time, in short trainings.

python docs/levers.py RUN                # list the changes, and which have been measured
python docs/levers.py RUN baseline gates # measure these, and fill a table of docs/recipes.md

RUN is the directory of a finished run of the study (`apd-jax --config=language_model:2`), whose
network is decomposed again: with the settings for logits, or with one of them changed, in a tenth
of the steps. The lines are kept in docs/results/levers/, in a folder for each number of layers and
one file for each change. The page has a table for each of these folders.
"""

import json
import pathlib
import re
import sys
from typing import Any, NamedTuple

import jax

import apd_jax
from apd_jax.studies.language_model.network import LanguageModel, Transformer

DOCS = pathlib.Path(__file__).parent
PAGE, KEPT = DOCS / "recipes.md", DOCS / "results" / "levers"
MARK = re.compile(r"<!-- levers: (\S+) -->\n.*?<!-- end -->", re.DOTALL)
STEPS, CONTEXTS = 1200, 128
TASK = LanguageModel()


class Lever(NamedTuple):
    """A change of the settings: words for the table, and the options of `decompose`."""

    words: str
    options: dict[str, Any]


LEVERS = {
    "baseline": Lever("the settings for logits, 1200 steps", {}),
    "axes": Lever("Adam along the axes (`eigenbasis=False`)", {"eigenbasis": False}),
    "random": Lever('`start="random"`', {"start": "random"}),
    "constant": Lever(
        "all of the partial loss from the start", {"schedules": {"partial": "constant"}}
    ),
    "batch": Lever('`selection="batch"`: k on average', {"selection": "batch"}),
    "probe": Lever("1 direction in training steps", {"num_probes": 1}),
    "nobody": Lever("no adversary", {"adversary_share": 0.0}),
    "halves": Lever("inactive components whole or absent", {"partial_masks": "halves"}),
    "weaker": Lever("partial loss 1", {"coefficients": {"partial": 1.0}}),
    "gates": Lever("gates with `l0` 1", {"selection": "gates", "coefficients": {"l0": 1.0}}),
    "again": Lever("the first line again, on the network of the lines below", {}),
    "steps": Lever(
        "an adversary of 2 steps of size 0.5", {"adversary_steps": 2, "adversary_step_size": 0.5}
    ),
    "faithful": Lever("faithfulness 40", {"coefficients": {"faithfulness": 40.0}}),
    "simple": Lever("simplicity 1", {"coefficients": {"simplicity": 1.0}}),
    "remainder": Lever("`remainder=True`", {"remainder": True}),
    "falling": Lever(
        "k falls from 28 to 7 in the first 40 %", {"schedules": {"topk": "0:4 0.4:1 1:1"}}
    ),
    "rounds": Lever(
        "rounds of refinement in the metric of minimality",
        {"refine": {"every": 0.1, "measure": "minimality"}},
    ),
    "rate": Lever("learning rate 0.3", {"learning_rate": 0.3}),
    "eight": Lever("k = 8", {"topk": 8.0}),
    "stronger": Lever(
        "partial loss 3, faithfulness 180",
        {"coefficients": {"partial": 3.0, "faithfulness": 180.0}},
    ),
}
COLUMNS = {
    "l0": "L0",
    "own": "own mask",
    "random": "random partial masks",
    "adversarial_20": "adversary, 20 steps",
    "pooled_8": "pooled over 8",
    "never_needed": "never needed",
    "ce_recovered": "cross entropy recovered",
    "ce_of_sum": "excess cross entropy of the sum",
    "faithfulness_worst": "worst site's faithfulness",
    "always_on": "always on",
    "alive": "alive",
}


def measure(target: apd_jax.Target, lever: Lever) -> dict[str, float]:
    """Decompose the network with one setting changed, and return the lines of its evidence."""
    found = apd_jax.decompose(
        target,
        TASK.inputs,
        num_components=128,
        rank=2,
        minimality_loss="kl",
        per_position=True,
        chunk_steps=50,
        **{"topk": 7.0, "steps": STEPS} | lever.options,
    )
    x = TASK.held_out(jax.random.key(0), CONTEXTS)
    evidence = found.evidence(x, "next_tokens", baselines=(), adversary_steps=(20,))
    lines = evidence.to_dict()
    lines["ce_of_sum"] = lines["ce_all"] - lines["ce_target"]
    return {name: lines[name] for name in COLUMNS}


def table(kept: pathlib.Path) -> str:
    """Return the lines of all changes that are in this folder, in the order above."""
    header = ["training", *COLUMNS.values()]
    lines = [header, ["---"] * len(header)]
    for name, lever in LEVERS.items():
        path = kept / f"{name}.json"
        if path.exists():
            row = json.loads(path.read_text())
            values = [f"{row[column]:.3g}" for column in COLUMNS]
            lines.append([lever.words, *values])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def filled(mark: re.Match[str]) -> str:
    """Return a table of the page, filled anew, from the match of its marks."""
    return f"<!-- levers: {mark[1]} -->\n\n{table(KEPT / mark[1])}\n\n<!-- end -->"


def main(run: str, names: list[str]) -> None:
    """Measure some changes, or list all."""
    unknown = sorted(set(names) - set(LEVERS))
    if unknown:
        raise SystemExit(f"no change {unknown[0]!r}; there are {', '.join(LEVERS)}")
    (saved,) = (pathlib.Path(run) / "components").iterdir()
    target = apd_jax.load(saved, Transformer(TASK.heads)).target
    kept = KEPT / f"layers-{len(target.params['blocks'])}"
    kept.mkdir(parents=True, exist_ok=True)
    for name in names:
        row = measure(target, LEVERS[name])
        print(name, row, flush=True)
        (kept / f"{name}.json").write_text(json.dumps(row, indent=1) + "\n")
        PAGE.write_text(MARK.sub(filled, PAGE.read_text()))
    if not names:
        for name, lever in LEVERS.items():
            print(f"{name:10} {'measured' if (kept / f'{name}.json').exists() else '':9} {lever}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2:])
