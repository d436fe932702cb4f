"""Words of the report: what was decomposed, how, and what the measures mean."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from apd_jax.report import numbers
from apd_jax.runtime.metric_names import LOSS, NONFINITE_SCORES

# Measures that any study may report: key -> (column title, meaning). A study adds its own.
MEASURES = {
    "faithfulness_mse": (
        "faithfulness MSE",
        "mean squared difference between the target's weights and the sum of all components, "
        "at the worst site",
    ),
    "topk_mse": (
        "top-k MSE",
        "mean squared difference between the target's output and the output with only the "
        "top-k components switched on",
    ),
    "restart_mmcs": (
        "restart MMCS",
        "mean over pairs of restarts of the mean over components of the largest cosine with any "
        "component of the other restart",
    ),
    "restart_matched": (
        "restarts matched",
        "mean over pairs of restarts of the share of components that have a partner of cosine 0.9",
    ),
    "target_loss": ("target loss", "the target's own loss against the labels, on fresh inputs"),
}

_CURVES = {
    "loss/total": ("Total loss", "weighted sum of the terms"),
    "gradient_norm": ("Gradient norm", "norm over the gradients of all factors"),
    "active_components": ("Active components", "mean number per input"),
    "dead_components": ("Dead components", "not active in the last 1000 steps"),
    NONFINITE_SCORES: (
        "Scores that are not finite",
        "attributions that are NaN or infinite, summed over the steps of a row of metrics",
    ),
    "refine/merges": ("Merges", "pairs of duplicates merged, total of all rounds so far"),
    "refine/splits": ("Splits", "components with two mechanisms that were split"),
    "refine/gathers": ("Gathers", "mechanisms without a component of their own that got one"),
    "refine/cleans": (
        "Cleans",
        "sites whose remainder was returned to the components reading it",
    ),
    "refine/undone": ("Rounds undone", "because the errors were larger after them"),
    "learning_rate": ("Learning rate", "as it was in each step"),
    "steps_per_second": ("Steps per second", "all seeds together"),
    "target/loss": ("Target training loss", "MSE against the labels"),
}


class Subject(NamedTuple):
    """What a report is about, in the words of its study and its settings.

    Attributes:
      title: name of the decomposed network: "Residual MLP, 2 layers".
      description: a sentence about the target.
      measures: `{key: (column title, meaning)}` of the study's own numbers.
      sentences: `{dotted name: sentence}` of the fields of the config.
    """

    title: str
    description: str
    measures: Mapping[str, tuple[str, str]]
    sentences: Mapping[str, str]


def curves(subject: Subject) -> dict[str, tuple[str, str]]:
    """Title and note of every curve, in reading order.

    The note of a loss term is the sentence of its coefficient, the field `coefficients.<term>`.
    """
    fields = {name.partition(".")[::2]: sentence for name, sentence in subject.sentences.items()}
    titled = {
        f"{LOSS}{term}": (term.replace("_", " ").capitalize(), sentence.rstrip("."))
        for (record, term), sentence in fields.items()
        if record == "coefficients"
    }
    total = f"{LOSS}total"
    return {total: _CURVES[total]} | titled | _CURVES


def config_rows(config: dict[str, Any], sentences: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(dotted name, value as JSON, sentence) of every leaf of a config."""
    return [
        (key, json.dumps(value, default=str), sentences.get(key, ""))
        for key, value in flatten_dict(config, sep=".").items()
    ]


def how(config: Mapping[str, Any], inputs: str = "fresh inputs") -> str:
    """Describe the decomposition in sentences, from those config fields that are present."""
    fields = ("num_components", "rank", "steps", "batch_size", "seeds")
    count, rank, steps, batch, seeds = (config.get(field) for field in fields)
    number = "" if count is None else f"{numbers.number(count)} "
    text = [f"Its weights were written as a sum of {number}parameter components"]
    text.append(
        "." if rank is None else f", each of rank at most {numbers.number(rank)} at a site."
    )
    if steps is not None and batch is not None:
        text.append(
            f" They were trained for {numbers.number(steps)} steps "
            f"on batches of {numbers.number(batch)} {inputs}{_optimiser(config)}."
        )
    if seeds is not None and seeds > 1:
        text.append(f" {numbers.number(seeds)} seeds ran in parallel, each initialised by itself.")
    return "".join(text)


def _optimiser(config: Mapping[str, Any]) -> str:
    """The clause ", with Adam at a learning rate of 0.03 (constant)", or nothing."""
    rate, schedule = config.get("learning_rate"), config.get("schedule")
    if rate is None:
        return ""
    shape = "" if schedule is None else f" ({schedule} schedule)"
    unit = " times the root mean square of each factor" if config.get("relative_rate") else ""
    basis = config.get("eigenbasis")
    where = ", in the eigenvectors of the gradients of every matrix," if basis else ""
    return f", with Adam{where} at a learning rate of {numbers.threshold(rate)}{unit}{shape}"


def objective(config: Mapping[str, Any]) -> str:
    """Describe the selection of components, the loss with its coefficients, and its caveats."""
    terms = {name: c for name, c in (config.get("coefficients") or {}).items() if c}
    loss = " + ".join(
        (f"{numbers.threshold(c)} × " if c != 1 else "") + name.replace("_", " ")
        for name, c in terms.items()
    )
    caveats = ""
    if config.get("relative_losses"):
        caveats += (
            " Each loss is divided by its value without any component (simplicity: with the target "
            "as one component)."
        )
    if "partial" in terms:
        parts = "random parts"
        if config.get("partial_masks") == "halves":
            parts = "a random half"
        caveats += (
            f" The partial term trains the output with {parts} of the inactive components on: an "
            "error with random masks, such as the scrubbed error, is no independent check of this "
            "run."
        )
    return (
        f"{_switched_on(config)} Faithfulness means that the components add up to the target's "
        "weights, minimality that the active ones alone give its output, and simplicity that they "
        f"have a low rank.{f' Training minimises loss = {loss}.' if loss else ''}{caveats}"
    )


def _switched_on(config: Mapping[str, Any]) -> str:
    """The sentence about the selection of components."""
    k = config.get("topk")
    count = numbers.number(k)
    model = "component model" if config.get("attribution_source") == "components" else "target"
    method = str(config.get("attribution", "gradient"))
    whose = f"computed on the {model}" if method == "gradient" else f"by {method.replace('_', ' ')}"
    largest = f"the components with the largest attributions ({whose})"
    row = "position" if config.get("per_position") else "input"
    sentences = {
        "batch": f"In a batch {largest} are switched on, {count} per {row} on average.",
        "sample": f"For every {row} {largest} are switched on, {count} of them.",
        "exact": f"In a batch {largest} are switched on, as many as there are active inputs.",
        "gates": "Every component has a learned gate, which large attributions open "
        f"({whose}): at most {count} are open per {row} on average.",
    }
    general = f"For every {row} {largest} matter most."
    besides = " The last component is always on and not counted." if config.get("distil") else ""
    chosen = sentences.get(str(config.get("selection")), general) + besides
    return general if k is None else chosen


def control(title: str, config: Mapping[str, Any]) -> str:
    """The title of a study's network, with a note where its matrices are shuffled."""
    shuffled = (config.get("target") or {}).get("shuffled")
    return f"{title}: a control, its matrices shuffled" if shuffled else title


def measure(name: str, measures: Mapping[str, tuple[str, str]]) -> str:
    """Name an entry of the summary: "MMCS, mean over seeds" for "mmcs_mean"."""
    if name == "solve_rate":
        return "share of seeds that solved it"
    base = name.removesuffix("_mean")
    label = measures[base][0] if base in measures else base.replace("_", " ")
    return label if base == name else f"{label}, mean over seeds"


def seed_names(results: Mapping[str, Any]) -> list[str]:
    """Name of every seed: its own "seed", or counted from the config's first."""
    first = results["config"].get("seed") or 0
    return [str(seed.get("seed", first + i)) for i, seed in enumerate(results["seeds"])]


def solved(results: Mapping[str, Any]) -> str:
    """Say how many seeds solved the task and which did not; empty if no seed has a verdict."""
    seeds, names = results["seeds"], seed_names(results)
    if not any("solved" in seed for seed in seeds):
        return ""
    failed = [name for name, seed in zip(names, seeds, strict=True) if not seed.get("solved")]
    if len(seeds) == 1:
        return "The one seed did not solve it." if failed else "The one seed solved it."
    if not failed:
        return f"All {len(seeds)} seeds solved it."
    if len(failed) == len(seeds):
        return f"None of the {len(seeds)} seeds solved it."
    plural = "s" if len(failed) > 1 else ""
    return (
        f"{len(seeds) - len(failed)} of {len(seeds)} seeds solved it; "
        f"not solved by seed{plural} {', '.join(failed)}."
    )


def facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, value) pairs about size, machine and time."""
    config = results["config"]
    fields = {
        "components": "num_components",
        "rank": "rank",
        "steps": "steps",
        "batch size": "batch_size",
        "seeds": "seeds",
    }
    rows = [
        (label, numbers.number(config[key]))
        for label, key in fields.items()
        if config.get(key) is not None
    ]
    seconds = results["seconds"]
    names = {"target": "target training", "decompose": "decomposition", "evaluate": "evaluation"}
    rows += [(names.get(key, key), numbers.seconds(value)) for key, value in seconds.items()]
    machine = results.get("machine")
    if isinstance(machine, Mapping):
        machine = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in machine.items())
    if machine:
        rows.append(("machine", str(machine)))
    return rows
