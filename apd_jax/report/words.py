"""Words of the report: what was decomposed, how, and what the measures mean."""

from collections.abc import Iterator, Mapping
from typing import Any

from apd_jax.report import numbers

_MODELS = {
    "tms": "Toy model of superposition",
    "resid_mlp": "Residual MLP",
    "gated_functions": "Hand-coded gated functions",
}

_TARGETS = {
    "tms": (
        "The target is a toy model of superposition, y = ReLU(x W Wᵀ + b): more sparse features "
        "than hidden dimensions."
    ),
    "gated_functions": (
        "The target is a hand-coded network of gated functions: each control bit switches on one "
        "function of x, and every neuron belongs to exactly one function, so the true "
        "decomposition is known."
    ),
}

# key -> (column title, meaning)
MEASURES = {
    "faithfulness_mse": (
        "faithfulness MSE",
        "mean squared difference between the target's weights and the sum of all components, "
        "at the worst site",
    ),
    "topk_mse": (
        "top-k MSE",
        "mean squared difference between the target's output and the output with only the "
        "top-k components on",
    ),
    "mmcs": (
        "MMCS",
        "mean over features of the largest cosine between the feature's direction in the "
        "target and in any component",
    ),
    "ml2r": (
        "ML2R",
        "mean over features of the norm ratio between the best component's direction and the "
        "target's; 1 is no shrinkage",
    ),
    "features_recovered": (
        "features recovered",
        "features that a component of their own recovers, in direction and in size",
    ),
    "scrubbed_mse": (
        "scrubbed MSE",
        "error with half of the components on at random, plus all those of the active features",
    ),
    "antiscrubbed_mse": (
        "anti-scrubbed MSE",
        "error with half of the components on at random, minus those of the active features; "
        "should be large",
    ),
    "random_mse": (
        "random MSE",
        "error with half of the components on at random, whatever the input",
    ),
    "monosemantic_mse": (
        "monosemantic MSE",
        "error of a baseline in which every neuron computes one feature perfectly and the "
        "other features get y = x",
    ),
    "zero_mse": ("zero MSE", "error of an output of zeros: the target's mean squared output"),
    "antiscrubbed_over_monosemantic": (
        "anti-scrubbed / monosemantic",
        "ratio of the two errors; above 1 the removed components do matter",
    ),
    "monosemantic_over_target": (
        "monosemantic / target",
        "ratio of the errors against the labels on inputs with an active feature; above 1 the "
        "target computes more functions than it has neurons",
    ),
    "contribution_cosine": (
        "contribution cosine",
        "mean over features of the cosine between the neuron contributions of the best "
        "component and of the target",
    ),
    "features_represented": (
        "features represented",
        "features that at least one component represents",
    ),
    "dead": ("dead", "components that represent no feature"),
    "monosemantic": ("one feature", "components that represent exactly one feature"),
    "duosemantic": ("two features", "components that represent two features"),
    "polysemantic": ("more", "components that represent more than two features"),
    "single_component_features": (
        "single-component features",
        "features for which one component alone removes 90% of the error over a sweep of that "
        "input",
    ),
    "target_loss": ("target loss", "the target's own loss against the labels, on fresh inputs"),
    "weight_purity": (
        "weight purity",
        "share of the squared weight that lies in the component of its own function",
    ),
}

CURVES = {
    "loss/total": ("Total loss", "weighted sum of the terms"),
    "loss/faithfulness": ("Faithfulness", "sum of components against target weights"),
    "loss/minimality": ("Minimality", "top-k output against target output"),
    "loss/simplicity": ("Simplicity", "Schatten norm of active components"),
    "loss/activation": ("Hidden activations", "top-k activations against target"),
    "loss/output": ("Output of all components", "against target output"),
    "loss/lp_minimality": ("Lp minimality", "Lp norm of attributions"),
    "loss/lp_simplicity": ("Lp simplicity", "Schatten norm weighted by attributions"),
    "gradient_norm": ("Gradient norm", "over all factors"),
    "active_components": ("Active components", "mean number per input"),
    "dead_components": ("Dead components", "not active in the last 1000 steps"),
    "learning_rate": ("Learning rate", "schedule as it was run"),
    "steps_per_second": ("Steps per second", "all seeds together"),
    "target/loss": ("Target training loss", "MSE against the labels"),
}


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) for every leaf of a nested config."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def title(results: Mapping[str, Any]) -> str:
    """The name of what was decomposed, e.g. "Residual MLP, 2 layers"."""
    name, variant = str(results["name"]), str(results.get("variant") or "")
    model = _MODELS.get(name, name)
    if name == "resid_mlp" and variant.isdigit():
        return f"{model}, {variant} layer{'' if variant == '1' else 's'}"
    return f"{model} {variant}".strip()


def what(results: Mapping[str, Any]) -> str:
    """One sentence about the kind of target."""
    if results["name"] == "resid_mlp":
        return _residual_mlp(results["config"].get("target") or {})
    return _TARGETS.get(str(results["name"]), f"The target is a network named {results['name']}.")


def _residual_mlp(target: Mapping[str, Any]) -> str:
    """The sentence about a residual MLP, made of the config fields that are there."""
    inside = "x" if target.get("label_seed") is None else "c·x"
    activation = {"gelu": "GELU"}.get(str(target.get("activation")), "ReLU")
    labels = f"|{inside}|" if target.get("label_kind") == "abs" else f"x + {activation}({inside})"
    drawn = "" if inside == "x" else ", with c drawn between 1 and 2 for each"
    count, neurons = target.get("num_features"), target.get("neurons")
    size = "" if neurons is None else f" with {numbers.number(sum(neurons))} neurons"
    features = "many" if count is None else numbers.number(count)
    return (
        f"The target is a residual MLP{size} that was trained to output {labels} for each of "
        f"{features} sparse input features{drawn}."
    )


def how(config: Mapping[str, Any]) -> str:
    """Sentences about the decomposition, made of the config fields that are there."""
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
            f"on batches of {numbers.number(batch)} fresh inputs{_optimiser(config)}."
        )
    if seeds is not None and seeds > 1:
        text.append(f" {numbers.number(seeds)} seeds ran side by side, each from its own start.")
    return "".join(text)


def _optimiser(config: Mapping[str, Any]) -> str:
    """ ", with Adam at a learning rate of 0.03 (constant)", or nothing."""
    rate, schedule = config.get("learning_rate"), config.get("schedule")
    if rate is None:
        return ""
    shape = "" if schedule is None else f" ({schedule} schedule)"
    return f", with Adam at a learning rate of {numbers.threshold(rate)}{shape}"


def objective(config: Mapping[str, Any]) -> str:
    """Which components are on for an input, and the loss with its coefficients."""
    terms = {name: c for name, c in (config.get("coefficients") or {}).items() if c}
    loss = " + ".join(
        (f"{numbers.threshold(c)} × " if c != 1 else "") + name.replace("_", " ")
        for name, c in terms.items()
    )
    return (
        f"{_switched_on(config)} Training pulls the components towards adding up to the target's "
        "weights (faithfulness), towards few of them being enough for an input (minimality) and "
        f"towards low rank (simplicity){f': loss = {loss}' if loss else ''}."
    )


def _switched_on(config: Mapping[str, Any]) -> str:
    """The sentence about the selection of components."""
    k = config.get("topk")
    count = numbers.number(k)
    model = "component model" if config.get("attribution_source") == "components" else "target"
    largest = f"the components with the largest attributions (those of the {model})"
    sentences = {
        "batch": f"In a batch {largest} are switched on, {count} per input on average.",
        "sample": f"For every input {largest} are switched on, {count} of them.",
        "exact": f"In a batch {largest} are switched on, as many as inputs are active.",
    }
    general = f"For every input {largest} count most."
    return general if k is None else sentences.get(str(config.get("selection")), general)


def measure(name: str) -> str:
    """A summary entry in words: "MMCS, mean over seeds" for "mmcs_mean"."""
    if name == "solve_rate":
        return "share of seeds that solved it"
    base = name.removesuffix("_mean")
    label = MEASURES[base][0] if base in MEASURES else base.replace("_", " ")
    return label if base == name else f"{label}, mean over seeds"


def seed_names(results: Mapping[str, Any]) -> list[str]:
    """Name of every seed: its own "seed", or counted from the config's first."""
    first = results["config"].get("seed") or 0
    return [str(seed.get("seed", first + i)) for i, seed in enumerate(results["seeds"])]


def solved(results: Mapping[str, Any]) -> str:
    """Say how many seeds solved the task and which did not; empty where no seed says so."""
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
