"""Compare the training step with that of the paper's own code.

`python -m benchmarks.against_reference --reference=CHECKOUT --python=PYTHON_WITH_TORCH`
Two processes alternate in rounds; each sleeps while the other one works.
"""

import argparse
import pathlib
import sys
from typing import Any

from benchmarks import options, process, tables, turns
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
            return turns.alternate(ours, theirs, args)


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
    turns.add_options(parser, seconds=6)
    parser.add_argument(
        "--reference_warm", type=int, default=2, help="steps of the reference before any timing"
    )
    options.add_output_option(parser, "reference.json")
    return parser.parse_args()


def main() -> None:
    args = _parse()
    turns.limit_cores(args)
    results: dict[str, Any] = {"configs": {}}
    for name in args.configs:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results["configs"][name] = compare(name, args)
        options.write(args, results)
    print("\n" + tables.against(results))


if __name__ == "__main__":
    main()
