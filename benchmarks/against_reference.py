"""Compare the training step with that of the paper's own code.

`python -m benchmarks.against_reference --reference=CHECKOUT --python=PYTHON_WITH_TORCH`
Two processes alternate in rounds; each sleeps while the other one works.
"""

import argparse
import os
import pathlib
import statistics
import sys
from typing import Any

from benchmarks import options, process, tables
from benchmarks.run import WORKER


def translate(config: dict[str, Any]) -> dict[str, Any]:
    """Translate a config to the arguments of the reference's driver.

    The reference has no option for attributions from the component model, which the paper's 5-2
    needs. It computes them from the target, which is less work.
    """
    weights = config["coefficients"]
    spd = {
        "C": config["num_components"],
        "m": config["rank"],
        "topk": config["topk"],
        "batch_topk": config["selection"] == "batch",
        "batch_size": config["batch_size"],
        "steps": config["steps"],
        "print_freq": config["steps"],
        "seed": config["seed"],
        "lr": config["learning_rate"],
        "lr_schedule": config["schedule"],
        "lr_warmup_pct": config["warmup_fraction"],
        "unit_norm_matrices": config["unit_norm"],
        "param_match_coeff": weights["faithfulness"] or None,
        "topk_recon_coeff": weights["minimality"] or None,
        "act_recon_coeff": weights["activation"] or None,
        "schatten_coeff": weights["simplicity"] or None,
        "schatten_pnorm": config["schatten_p"],
        "task_config": _task(config),
    }
    return {"name": config["name"], "spd": spd, "model": _model(config)}


def _task(config: dict[str, Any]) -> dict[str, Any]:
    shared = {
        "feature_probability": config["target"]["probability"],
        "pretrained_model_path": "none",
    }
    if config["name"] == "tms":
        return {**shared, "task_name": "tms", "train_bias": False, "bias_val": 0.0}
    return {**shared, "task_name": "residual_mlp", "init_scale": config["init_scale"]}


def _model(config: dict[str, Any]) -> dict[str, Any]:
    target = config["target"]
    model = {
        "instances": config["seeds"],
        "features": target["num_features"],
        "probability": target["probability"],
    }
    if config["name"] == "tms":
        layers = {"hidden": target["num_hidden"], "hidden_layers": target["hidden_layers"]}
        return {**model, **layers}
    shape = {name: target[name] for name in ("d_resid", "neurons", "activation")}
    return {**model, **shape, "init_scale": config["init_scale"]}


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time both programs on one config, in alternating rounds."""
    driver = [str(args.python.absolute()), "-m", "benchmarks.reference_driver"]
    with process.worker(WORKER, options.request(name, args)) as ours:
        request = {
            "reference": str(args.reference.resolve()),
            "threads": args.threads,
            "warm": args.reference_warm,
            "device": "cuda" if ours.ready["machine"]["backend"] == "gpu" else "cpu",
            **translate(ours.ready["config"]),
        }
        with process.worker(driver, request) as theirs:
            rounds = [_round(ours, theirs, args, number) for number in range(args.rounds)]
            libraries = {
                "ours": ours.ready["libraries_memory"],
                "theirs": theirs.ready["libraries_memory"],
            }
    ratios = [round_["theirs"] / round_["ours"] for round_ in rounds]
    memory = {side: max(r[f"{side}_memory"] for r in rounds) for side in ("ours", "theirs")}
    return {
        "rounds": rounds,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "seconds_per_step": {
            side: statistics.median(r[side] for r in rounds) for side in ("ours", "theirs")
        },
        "peak_memory": memory,
        "libraries_memory": libraries,
        "memory_ratio": memory["theirs"] / memory["ours"],
        "machine": ours.ready["machine"],
    }


def _round(ours, theirs, args: argparse.Namespace, number: int) -> dict[str, float]:
    """Return the mean seconds per step of both; their order alternates from round to round."""
    sides = [("ours", ours), ("theirs", theirs)]
    answers = {}
    for side, worker in sides if number % 2 == 0 else reversed(sides):
        request = {"do": "run", "seconds": args.seconds, "steps": args.steps}
        answers[side] = worker.ask(request)
    times = {side: statistics.mean(a["seconds_per_step"]) for side, a in answers.items()}
    return times | {f"{side}_memory": a["peak_memory"] for side, a in answers.items()}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.against_reference", description=__doc__
    )
    parser.add_argument(
        "--reference", type=pathlib.Path, required=True, help="checkout of the paper's code"
    )
    parser.add_argument(
        "--python", type=pathlib.Path, required=True, help="a Python that can run it"
    )
    options.add_config_options(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6, help="for each side of a round")
    parser.add_argument("--steps", type=int, help="steps of each side of a round, not --seconds")
    parser.add_argument(
        "--reference_warm", type=int, default=2, help="steps of the reference before any timing"
    )
    parser.add_argument("--threads", type=int, help="cores for each side; default: all")
    options.add_output_option(parser, "reference.json")
    return parser.parse_args()


def main() -> None:
    args = _parse()
    if args.threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    args.threads = process.cores()
    results: dict[str, Any] = {"configs": {}}
    for name in args.configs:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results["configs"][name] = compare(name, args)
        options.write(args, results)
    print("\n" + tables.reference(results))


if __name__ == "__main__":
    main()
