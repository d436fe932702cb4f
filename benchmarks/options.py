"""Command-line options that the commands of this folder share."""

import argparse
import json
import pathlib
from typing import Any

from benchmarks.process import ROOT

RESULTS = ROOT / "benchmarks" / "results"
CONFIGS = ("tms:5-2", "tms:40-10", "resid_mlp:1", "resid_mlp:2")


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add options for the choice of configs and their state."""
    parser.add_argument(
        "--configs", nargs="+", choices=CONFIGS, default=list(CONFIGS), metavar="CONFIG",
        help=f"which of {', '.join(CONFIGS)}",
    )  # fmt: skip
    add_state_options(parser)


def add_state_options(parser: argparse.ArgumentParser) -> None:
    """Add options for changes of a config and its preparation before anything is timed."""
    parser.add_argument(
        "--set", nargs="*", type=_override, default=[], metavar="FIELD=VALUE",
        help="change fields of the configs, such as attribution_mode=literal",
    )  # fmt: skip
    parser.add_argument(
        "--target_steps", type=int, default=1000, help="training steps of the target networks"
    )
    parser.add_argument(
        "--warm", type=int, default=300, help="steps before any timing: the load of the "
        "components, which some times depend on, evens out early in training",
    )  # fmt: skip
    parser.add_argument("--chunk", type=int, help="steps in one execution")


def add_output_option(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the option for the path of the JSON file."""
    parser.add_argument(
        "--out", type=pathlib.Path, default=RESULTS / name, help="default: %(default)s"
    )


def _override(text: str) -> tuple[str, Any]:
    field, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected FIELD=VALUE, got {text!r}")
    try:
        return field, json.loads(value)
    except json.JSONDecodeError:
        return field, value


def request(name: str, args: argparse.Namespace, **overrides: Any) -> dict[str, Any]:
    """Return the first request to a worker: the config and state to prepare."""
    return {
        "config": name,
        "overrides": dict(args.set) | overrides,
        "target_steps": args.target_steps,
        "warm": args.warm,
        "chunk": args.chunk,
    }


def write(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Write results with the options of the measurement, except paths of files."""
    used = {name: v for name, v in vars(args).items() if not isinstance(v, pathlib.Path)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**results, "options": used}, indent=1) + "\n")
